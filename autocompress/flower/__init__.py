"""Flower carries the messages of federated studies; it runs in an environment of its own.

Its simulation engine needs other versions of Ray and of the command line's libraries than the rest
of this package. So ``client_app``, ``server_app`` and ``simulate`` run in processes of that
environment, which ``environment`` finds and ``relay`` talks to; nothing else imports Flower.
"""
