"""Modules and pure functions shared by several kinds of model. Imports only torch and `core`."""
