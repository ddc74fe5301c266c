"""The HTTP service of gradest: sampling and gradient estimation for programs that keep their loss function to themselves.

A request is decoded, admitted and run, and its answer is encoded: `routes.answer_joinable` is these four steps. The files, from
the outside to the inside:

    app            builds the application (`create_app`) and runs it (`serve`, `running`); `ray` runs it on Ray Serve
    routes         which path does what
    middleware     what holds for every request: its id, API key, deadline and size, and what becomes of an unexpected error
    openapi        the OpenAPI document; docs/ is the page at /docs that shows it
    page/          the web page at /
    static_files   serves the files of both pages
    host/          the process around the application: its server, workers, HTTP protocol, logs and configuration
    run/           what computes the answers, and which requests are computed together
    admit/         who may send a request, how much it may ask for, and the checked job that it becomes
    bodies/        bytes to named fields and tensors, and back
    problems       errors, as RFC 9457 problem details
    plugin_frames  which plugin an error comes from
    phases         when the phases of a request began and ended; `tracing` makes spans of them
    settings       what an operator can set

Imports run inwards, in this order: ray, cli | app | routes | openapi, middleware, page, docs | static_files, run, host | admit |
bodies | problems, tracing | phases, plugin_frames, settings. What stands between two bars does not import each other. The
service keeps nothing from one request to the next. It names no plugin: whatever is registered is served.
"""
