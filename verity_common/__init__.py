"""What programs around Verity share: settings from the environment and a Kafka producer."""
