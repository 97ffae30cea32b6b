"""The container engine: what one must be able to do, and the engines there are."""
