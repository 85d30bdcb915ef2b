const express = require("express");

const app = express();
app.get("/", (request, response) => response.json({ hello: process.env.GREETING }));
app.listen(8000, "0.0.0.0");
process.on("SIGTERM", () => process.exit(0));
