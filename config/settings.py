"""Every setting in one file. What differs between sizes comes from the environment."""

import importlib.util
import sys
from datetime import timedelta
from pathlib import Path

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
environ.Env.read_env(BASE_DIR / ".env")

# Where files live: datasets, checkpoints, uploads, the embedded database and its broker.
PREFLOOP_STORAGE = Path(env.str("PREFLOOP_STORAGE", default=str(BASE_DIR / "data")))
# Where machines that share no folder leave files for each other, as s3://bucket/prefloop: any place
# that fsspec knows. Empty: PREFLOOP_STORAGE is all there is (docs/scaling.md).
PREFLOOP_SHARED_STORAGE = env.str("PREFLOOP_SHARED_STORAGE", default="")
# For its owner alone: the database holds sessions and password hashes.
PREFLOOP_STORAGE.mkdir(mode=0o700, parents=True, exist_ok=True)

# Laptop mode is the default: it serves loopback only. Team mode says DEBUG=0 and must bring a key.
LAPTOP = env.bool("DEBUG", default=True)
# Error pages with code and settings are for those who ask for them; all others see our own.
DEBUG = LAPTOP and ("DEBUG" in env.ENVIRON or "runserver" in sys.argv)
SECRET_KEY = env.str("SECRET_KEY", default="")
if not SECRET_KEY:
    if not LAPTOP:
        raise ImproperlyConfigured(
            "SECRET_KEY is required when DEBUG is off: set it to a long random string, "
            'for example from `python -c "import secrets; print(secrets.token_urlsafe(50))"`.'
        )
    from config.local_secret import local_secret_key

    SECRET_KEY = local_secret_key(PREFLOOP_STORAGE)
# Earlier keys, newest first: what they encrypted and signed is still read. See docs/security.md.
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_htmx",
    "template_partials",
    "rest_framework",
    "drf_spectacular",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "labeling",
    "judges",
    "training",
    "config",
]

MIDDLEWARE = [
    "config.tracing.request_id",
    "config.metrics.count_requests",
    "config.health.answers_to_health",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    # Before CommonMiddleware and after the session: what later ones write is in the right language.
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Django's check for forged requests reads the form later, right before the view.
    "config.bodies.bounded_bodies",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "config.headers.sign_in_is_a_page",
    "config.headers.content_security_policy",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "labeling.views.notices.unread",
            ],
        },
    },
]

DATABASES = {
    "default": env.db_url(
        "DATABASE_URL", default=f"sqlite:///{PREFLOOP_STORAGE / 'prefloop.sqlite3'}"
    )
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # A transaction takes the write lock when it begins: two of them never both read "one place
        # left" and then both write. Waiting up to 20 s is better than "database is locked".
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # FULL: an acknowledged preference survives a power cut; in WAL, NORMAL does not promise it.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
    }
    # Tests use a file too: the in-memory database of the default knows no WAL and no waiting, so
    # threads would meet "table is locked" that no installation ever shows.
    DATABASES["default"]["TEST"] = {"NAME": str(PREFLOOP_STORAGE / "test.sqlite3")}
else:
    DATABASES["default"]["CONN_MAX_AGE"] = 60
    # After a restart of the database no request meets a connection that is gone: one more question
    # for each, of a tenth of a millisecond.
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    # Statements are prepared at their third run: a label then costs the database half as much
    # (docs/benchmarks.md). A connection pooler in between has to know prepared statements.
    DATABASES["default"].setdefault("OPTIONS", {}).update(
        server_side_binding=True, prepare_threshold=3
    )
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
# So many wrong passwords or codes for one account from one address close the door for so long.
PREFLOOP_SIGN_IN_TRIES = env.int("PREFLOOP_SIGN_IN_TRIES", default=5)
PREFLOOP_SIGN_IN_MINUTES = env.int("PREFLOOP_SIGN_IN_MINUTES", default=15)
# How many proxies of ours stand before the web process: their X-Forwarded-For and -Proto are
# believed, and nobody else's.
PREFLOOP_PROXIES = env.int("PREFLOOP_PROXIES", default=0)
PREFLOOP_SESSION_AGE = timedelta(hours=env.int("PREFLOOP_SESSION_HOURS", default=7 * 24))
SESSION_COOKIE_AGE = int(PREFLOOP_SESSION_AGE.total_seconds())

# allauth: the second factor for whoever wants one, and sign-in by OIDC where it is set up.
ACCOUNT_ADAPTER = "config.sign_in.Accounts"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_UNIQUE_EMAIL = False
ACCOUNT_REAUTHENTICATION_REQUIRED = True  # before a way to sign in is connected or taken away
ACCOUNT_RATE_LIMITS = False  # labeling/sign_ins.py counts, for all processes together
MFA_ADAPTER = "config.sign_in.SecondFactors"
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
MFA_FORMS = {
    "authenticate": "config.sign_in.CodeForm",
    "reauthenticate": "config.sign_in.CodeAgainForm",
}
MFA_TOTP_ISSUER = "Prefloop"
MFA_TOTP_TOLERANCE = 1  # clocks of telephones are some seconds off
PREFLOOP_OIDC = {
    name: env.str(f"PREFLOOP_OIDC_{name.upper()}", default="")
    for name in ("issuer", "client_id", "client_secret", "name")
}
PREFLOOP_OIDC = PREFLOOP_OIDC if PREFLOOP_OIDC["issuer"] else {}
# Whether people whom we do not know yet get an account by signing in there; it belongs to no
# project before somebody invites them.
PREFLOOP_OIDC_SIGNUP = env.bool("PREFLOOP_OIDC_SIGNUP", default=False)
if PREFLOOP_OIDC:
    for _needed in ("requests", "jwt", "oauthlib"):
        if importlib.util.find_spec(_needed) is None:
            raise ImproperlyConfigured(
                f"PREFLOOP_OIDC_ISSUER is set, and {_needed} is not installed here: "
                "pip install '.[oidc]'"
            )
    INSTALLED_APPS += ["allauth.socialaccount", "allauth.socialaccount.providers.openid_connect"]
    PREFLOOP_OIDC["name"] = PREFLOOP_OIDC["name"] or "OpenID Connect"
    SOCIALACCOUNT_ADAPTER = "config.oidc.Provider"
    SOCIALACCOUNT_PROVIDERS = {
        "openid_connect": {
            "OAUTH_PKCE_ENABLED": True,
            "APPS": [
                {
                    "provider_id": "oidc",
                    "name": PREFLOOP_OIDC["name"],
                    "client_id": PREFLOOP_OIDC["client_id"],
                    "secret": PREFLOOP_OIDC["client_secret"],
                    "settings": {"server_url": PREFLOOP_OIDC["issuer"]},
                }
            ],
        }
    }
    SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = ""
    SOCIALACCOUNT_STORE_TOKENS = False

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "labeling:home"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en"
# The browser's wish decides until a person chooses. How to add one: docs/languages.md.
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
LOCALE_PATHS = [BASE_DIR / "locale"]
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = PREFLOOP_STORAGE / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
STATIC_ROOT.mkdir(exist_ok=True)
WHITENOISE_USE_FINDERS = LAPTOP
# Only the development server looks at every file again on every request.
WHITENOISE_AUTOREFRESH = DEBUG and "runserver" in sys.argv

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
# Team mode speaks TLS alone; PREFLOOP_HTTP=1 is for a trusted plain-HTTP network.
_tls = not LAPTOP and not env.bool("PREFLOOP_HTTP", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _tls
if _tls:
    SECURE_SSL_REDIRECT = True
    # Programs that collect figures ask by address, inside the network.
    SECURE_REDIRECT_EXEMPT = [r"^metrics$"]
    # For these names browsers ask for TLS alone from now on. 0 takes it back, while it is tried.
    SECURE_HSTS_SECONDS = env.int("PREFLOOP_HSTS_SECONDS", default=365 * 24 * 3600)
    SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE_HSTS_SECONDS > 0
if PREFLOOP_PROXIES:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# The message only wakes a worker. What is to be done, and who does it, stands in our own rows,
# claimed by one conditional UPDATE: a lost or doubled message does no harm.
# The embedded broker is a folder of files: docs/benchmarks.md compares it with SQLite tables.
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="filesystem://localhost")
if CELERY_BROKER_URL.startswith("filesystem:"):
    _queue = PREFLOOP_STORAGE / "queue"
    (_queue / "messages").mkdir(parents=True, exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(_queue / "messages"),
        "data_folder_out": str(_queue / "messages"),
        "control_folder": str(_queue / "control"),
        "polling_interval": 0.25,
    }
    # Its mailboxes would collect a file for every worker that ever was.
    CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_ACCEPT_CONTENT = ["json"]  # whoever reaches the broker cannot make a worker run a pickle
CELERY_TASK_ACKS_LATE = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_DEFAULT_QUEUE = "web"
CELERY_TASK_ROUTES = {
    "judges.tasks.run_judge": {"queue": "gpu"},
    "judges.tasks.try_judge": {"queue": "gpu"},
    "judges.tasks.run_experiment": {"queue": "gpu"},
    "judges.tasks.check_drift": {"queue": "gpu"},
    "judges.tasks.try_server": {"queue": "gpu"},  # the workers that will ask it hold its key
    "training.tasks.train": {"queue": "gpu"},
    "training.tasks.merge_models": {"queue": "gpu"},
    "training.tasks.answer_side_by_side": {"queue": "gpu"},
    "training.tasks.export_model": {"queue": "gpu"},
    "training.tasks.report_on_model": {"queue": "gpu"},
    "training.tasks.carry_out_study": {"queue": "gpu"},
    "training.tasks.choose_pairs": {"queue": "gpu"},
    "training.tasks.fill_arena": {"queue": "gpu"},
    # A queue of its own: behind two long imports, a killed worker would not be noticed.
    "labeling.tasks.sweep_jobs": {"queue": "sweep"},
}
CELERY_BEAT_SCHEDULE = {
    # A sweep that waited for a whole period is not worth doing twice.
    "find lost jobs": {
        "task": "labeling.tasks.sweep_jobs",
        "schedule": 10.0,
        "options": {"expires": 10.0},
    },
    "tend certificates": {
        "task": "judges.tasks.tend_certificates",
        "schedule": 60.0,
        "options": {"expires": 60.0},
    },
}
# A worker reports at least this often while it holds a job; three missed reports and it is lost.
PREFLOOP_HEARTBEAT_SECONDS = env.int("PREFLOOP_HEARTBEAT_SECONDS", default=10)
# Rows of one upload, in bytes; the import command has no limit.
PREFLOOP_MAX_UPLOAD_BYTES = env.int("PREFLOOP_MAX_UPLOAD_BYTES", default=512 * 1024 * 1024)
# Memory of the worker's GPU, such as 24GiB, where the web process cannot see it.
PREFLOOP_GPU_MEMORY = env.str("PREFLOOP_GPU_MEMORY", default="")
# Sizes of GPUs in GB, as 24,48,80: training runs then wait in a queue by the memory that they need
# (`manage.py queues` says which of them this machine's GPU can serve). Empty: one queue for all.
PREFLOOP_GPU_CLASSES = sorted(env.list("PREFLOOP_GPU_CLASSES", cast=int, default=[]))
# Processes that share each training run of this worker, by accelerate's launcher: one for each GPU.
PREFLOOP_RUN_PROCESSES = env.int("PREFLOOP_RUN_PROCESSES", default=1)
# Instead of it, a file of `accelerate config`: FSDP, several machines (docs/scaling.md).
PREFLOOP_ACCELERATE_CONFIG = env.str("PREFLOOP_ACCELERATE_CONFIG", default="")
# Whether Weights & Biases and Trackio may send a run's numbers over the network, to wherever their
# own settings say. Else they write files, which a person can send later.
PREFLOOP_TRACKERS_ONLINE = env.bool("PREFLOOP_TRACKERS_ONLINE", default=False)
# A vLLM server that writes responses while PPO learns: its address up to /v1, the folder through
# which it is handed adapters, as the worker writes it and (if by another path) as the server reads
# it, and its key. See docs/ppo.md.
PREFLOOP_VLLM_URL = env.str("PREFLOOP_VLLM_URL", default="")
PREFLOOP_VLLM_ADAPTERS = env.str("PREFLOOP_VLLM_ADAPTERS", default="")
PREFLOOP_VLLM_ADAPTERS_THERE = env.str("PREFLOOP_VLLM_ADAPTERS_THERE", default="")
PREFLOOP_VLLM_KEY = env.str("PREFLOOP_VLLM_KEY", default="")
PREFLOOP_LEASE_MINUTES = env.int("PREFLOOP_LEASE_MINUTES", default=15)

# Where e-mail goes out: smtp+tls://user:password@host:587. Empty: nobody gets any.
EMAIL_HOST = ""
if _email := env.str("EMAIL_URL", default=""):
    vars().update(env.email_url_config(_email))
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="prefloop@localhost")
# What stands before addresses in e-mails: https://prefloop.example.org
PREFLOOP_ADDRESS = env.str("PREFLOOP_ADDRESS", default="http://localhost:8000")

# Counts of requests. Each process has its own unless this is `redis://host`.
CACHES = {"default": env.cache_url("CACHE_URL", default="locmemcache://")}
CACHES["default"].setdefault("OPTIONS", {})
if CACHES["default"]["BACKEND"].endswith("RedisCache"):
    CACHES["default"]["BACKEND"] = "config.plain_cache.SharedCache"
    CACHES["default"]["OPTIONS"] |= {
        "serializer": "config.plain_cache.JSONSerializer",
        "socket_connect_timeout": 2,
        "socket_timeout": 2,
    }
if CACHES["default"]["BACKEND"].endswith("LocMemCache"):
    CACHES["default"]["OPTIONS"]["MAX_ENTRIES"] = 10_000

# Programs that collect /metrics show it as "Authorization: Bearer …"; empty: administrators alone.
PREFLOOP_METRICS_TOKEN = env.str("PREFLOOP_METRICS_TOKEN", default="")

# Requests a minute of one token in one scope; 0: no limit. Jobs are imports, reports and runs.
PREFLOOP_API_PER_MINUTE = env.int("PREFLOOP_API_PER_MINUTE", default=600)
PREFLOOP_API_JOBS_PER_MINUTE = env.int("PREFLOOP_API_JOBS_PER_MINUTE", default=30)
# A JSON body; files are bounded by PREFLOOP_MAX_UPLOAD_BYTES.
PREFLOOP_API_MAX_BYTES = env.int("PREFLOOP_API_MAX_BYTES", default=16 * 1024 * 1024)
# Whether webhooks may reach private networks and this machine.
PREFLOOP_WEBHOOK_PRIVATE = env.bool("PREFLOOP_WEBHOOK_PRIVATE", default=False)
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "labeling.api.access.BearerToken",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["labeling.api.access.Allowed"],
    "DEFAULT_THROTTLE_CLASSES": ["labeling.api.access.PerMinute"],
    "DEFAULT_PARSER_CLASSES": ["labeling.api.reading.BoundedJSON"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PAGINATION_CLASS": "labeling.api.reading.NewestFirst",
    "DEFAULT_SCHEMA_CLASS": "labeling.api.documentation.Route",
    "EXCEPTION_HANDLER": "labeling.api.refusals.refuse",
    "DEFAULT_METADATA_CLASS": None,
    "UNICODE_JSON": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Prefloop",
    "DESCRIPTION": "Everything that the pages do, for programs.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/api",
    "COMPONENT_SPLIT_REQUEST": True,
    # Enumerations stay where they are used: named by the machine, they read worse.
    "POSTPROCESSING_HOOKS": [],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "traced": {"()": "config.tracing.Traced"},
        "without_tokens": {"()": "config.tracing.WithoutTokens"},
    },
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(name)s [%(trace)s] %(message)s"},
        "json": {"()": "config.tracing.JSONLines"},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": env.str("LOG_FORMAT", default="line"),
            "filters": ["traced", "without_tokens"],
        }
    },
    "root": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
    # It asks for a package that fetches compiled kernels from the hub; training does without.
    "loggers": {
        "bitsandbytes.backends.cpu.ops": {"level": "ERROR"},
        # At the source too, for handlers that are not ours.
        "django.request": {"filters": ["without_tokens"]},
        "django.security.csrf": {"filters": ["without_tokens"]},
    },
}
