pytest_plugins = ["tests.postgres", "tests.fake_plugins"]
