import getpass

import flask

app = flask.Flask(__name__)


@app.get("/")
def hello() -> dict[str, str]:
    return {"hello": "flask", "user": getpass.getuser()}
