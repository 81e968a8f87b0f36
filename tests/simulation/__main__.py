import sys, time, traceback
from simulation.world import install, run

install()
a, b = int(sys.argv[1]), int(sys.argv[2])
size = sys.argv[3] if len(sys.argv) > 3 else "full"
t = time.process_time()
steps = 0
bad = 0
for s in range(a, b):
    o = run(s, size=size, trace="-v" in sys.argv)
    steps += o.steps
    if "-v" in sys.argv:
        print("\n".join(l for l in o.trace if "-vv" in sys.argv or " step " not in l))
    if o.violation:
        bad += 1
        print(s, o.violation[:300], o.digest, o.steps, f"{o.seconds:.0f}s", flush=True)
dt = time.process_time() - t
print(
    f"{bad} bad of {b - a}; {(b - a) / dt:.1f} runs/s {steps / dt:.0f} steps/s {steps / (b - a):.0f} steps/run"
)
