from hypothesis import settings

# A busy machine makes a deadline fail at random; a failure must come back in the next run.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
