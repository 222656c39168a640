"""One module for each step of a launch, named after its action in the specification."""
