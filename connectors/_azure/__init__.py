"""What the connectors of Azure's platforms share; every connector may import it."""
