// Shows the OpenAPI document beside this page, below whatever prefix it is served. No validator elsewhere is asked.
SwaggerUIBundle({
    url: new URL("../openapi.json", document.currentScript.src).href,
    dom_id: "#routes",
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    deepLinking: true,
    validatorUrl: null,
});
