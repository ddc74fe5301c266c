"""The HTTP service of gradest: sampling and gradient estimation for programs that keep their loss to themselves.

A request passes through these files, in this order:

    app         builds the application, and runs it
    middleware  request ids, the cap on bodies, and what becomes of an unexpected error
    routes      which path does what
    codec       bytes to named fields and tensors, and back
    schemas     the fields of every request and answer
    operations  what is done with them, by calls to gradest alone
    limits      what is refused before anything is allocated for it
    events      the event stream of a comparison
    problems    errors, as RFC 9457 problem details

The service keeps nothing from one request to the next and names no plugin: whatever is registered is served.
"""
