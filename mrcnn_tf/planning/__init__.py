"""Numbers to plan by, before any hardware is bought: work, memory, traffic and expected scaling of a config."""
