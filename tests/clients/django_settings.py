"""Settings for Django's own tests: both databases on the private server, tables with the access method in CLIENTS_AM."""

import os

OPTIONS = {"options": "-c default_table_access_method=" + os.environ["CLIENTS_AM"]}


def database(name):
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": os.environ["PGUSER"],
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
        "OPTIONS": OPTIONS,
        "TEST": {"NAME": name, "TEMPLATE": "clients_template"},
    }


DATABASES = {"default": database("clients_default"), "other": database("clients_other")}
SECRET_KEY = "tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
