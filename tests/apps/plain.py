"""Apps that know nothing of loopwatch."""

from fastapi import FastAPI


def make_app():
    app = FastAPI()

    @app.get("/ready")
    async def ready():
        return {}

    return app


app = make_app()
fastapi = make_app()


async def any_asgi_app(scope, receive, send):
    await fastapi(scope, receive, send)


def asgi2_app(scope):
    async def serve(receive, send):
        await fastapi(scope, receive, send)

    return serve


def wsgi_app(environ, start_response):
    start_response("200 OK", [])
    return [b""]


def make_asgi2_app():
    return asgi2_app
