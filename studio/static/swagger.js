// Swagger UI, at /docs: every operation of the API, to be read and tried.
/* global SwaggerUIBundle */
SwaggerUIBundle({ url: '/openapi.json', dom_id: '#swagger' });
