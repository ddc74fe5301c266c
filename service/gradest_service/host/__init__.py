"""The process around the application: its server, workers, HTTP protocol, logs and configuration."""
