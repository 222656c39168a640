"""The specification in TLA+, and the tools that check it. Start with `GVisorRuntime.tla`."""
