"""The HTTP service of gradest: sampling and gradient estimation for programs that keep their loss function to themselves.

A request is decoded, admitted, run, and its answer is encoded. `routes.answer_joinable` shows these steps in one function.

    app            builds the application (`create_app`) and runs it (`serve`, `running`)
    middleware     request ids, API keys, deadlines, the size of bodies, and what becomes of an unexpected error
    routes         which path does what: every request from its body to its answer
    openapi        the OpenAPI document, and `docs` the page that shows it at /docs
    page/          the web page at /
    run/           the computations, and which requests share one
    admit/         who may send a request, and how much it may ask for
    bodies/        bytes to named fields and tensors, and back
    host/          the process around the application: its server, workers, HTTP protocol, logs and configuration
    problems       errors, as RFC 9457 problem details
    plugin_frames  which plugin an error comes from
    settings       what an operator can set
    ray            the same application on Ray Serve

A module imports from its own line or from lines further down: `host` imports none of `run`, `bodies`, `routes`, `middleware`
and `app`, and `run`, `admit`, `bodies` import only what is below them, in this order. The service keeps nothing from one
request to the next. It names no plugin: whatever is registered is served.
"""
