"""The packaged model and demo volumes; LICENSES.md says where they come from."""
