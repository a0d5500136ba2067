"""The commands of `lifecycle`, one module a topic. Each parses, calls one function of the room that knows, and prints."""
