"""The OpenAPI document against a running service: schemathesis sends what every operation allows and what it does not,
with every check it has, without keys and with them. `python -m chaos.document` (`make fuzz`); the tests a few cases.
"""
