"""What several gateways share through Redis or Valkey: rests, counts in windows, and probes.

    shared.py    Shared: the lifetime, the claim of a request, the loop beside the requests
    outbox.py    what waits to be sent, bounded
    link.py      one life of the connection; late is lost
    calls.py     questions as calls of scripts, and what their replies mean
    scripts.py   the Lua, where every decision is made, by the server's clock
    types.py     the nouns

It knows nothing of providers, keys or models: names are strings, and numbers are numbers.
"""
