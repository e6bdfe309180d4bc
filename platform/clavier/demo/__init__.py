"""The main job, from an empty platform to answers, through the public HTTP API alone."""
