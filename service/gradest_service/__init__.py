"""The HTTP service of gradest: sampling and gradient estimation for programs that keep their loss to themselves.

A request passes through these files, in this order:

    app         builds the application, and runs it
    server      one process of it: uvicorn, and how it stops
    workers     several processes on one port
    protocol    uvicorn's HTTP, within limits
    middleware  request ids, keys, deadlines, what a body may be, and what becomes of an unexpected error
    auth        API keys, and what each may ask for
    load        what a process holds at a time
    routes      which path does what
    codec       bytes to named fields and tensors, and back
    schemas     the fields of every request and answer
    operations  what is done with them, by calls to gradest alone
    limits      what is refused before anything is allocated for it
    events      the event stream of a comparison
    problems    errors, as RFC 9457 problem details
    blame       which plugin an error comes from
    calls       what is known about the request in progress, for
    metrics     the counts that Prometheus reads, and
    logs        the line a request

`settings` has what an operator can set, `sources` finds it in flags, environment and file, and `docs` is the page at /docs.
The service keeps nothing from one request to the next and names no plugin: whatever is registered is served.
"""
