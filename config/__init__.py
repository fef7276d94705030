"""Settings, nanoGPT-style: config/default.py lists them all, a config file overrides some, --key=value overrides both.
A config file is Python and is executed: read it before you run it.

Any function here may raise UserError for a user's mistake or a damaged file; docstrings do not repeat this."""
import ast
import contextlib
import difflib
import json
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

DEFAULT = Path(__file__).parent / 'default.py'
# settings that do not change what is learned: a run may be continued, or recognised as finished, with other values
FREE = {'out_dir', 'micro_batch_size', 'shard', 'eval_interval', 'eval_iters', 'checkpoint_interval', 'log_interval',
        'log_to', 'keep_checkpoints', 'resume', 'overwrite', 'device', 'dtype', 'compile', 'num_workers'}

class UserError(Exception):
    """A user's mistake in one line: what, where, and what to do. Shown without a traceback unless DEBUG=1."""

@contextlib.contextmanager
def reading(path, remedy):
    """Whatever goes wrong while a file is read, or its values converted, becomes one line ending with the remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # json, numpy, torch and zip have a hundred ways to fail
        raise UserError(f'{path} cannot be read ({type(e).__name__}: {e!s:.200}): {remedy}') from e

def read_json(path, remedy):
    """The dictionary in a JSON file; None if there is no file."""
    with reading(path, remedy):
        return dict(json.loads(Path(path).read_text('utf-8'))) if os.path.lexists(path) else None

def settings(path):
    """The variables that a config file sets, without its modules, functions and _private names."""
    with reading(path, 'it must be a Python file'):
        variables = runpy.run_path(str(path))
    return {k: v for k, v in variables.items() if not (k.startswith('_') or callable(v) or isinstance(v, ModuleType))}

def load(argv, doc=''):
    """argv [CONFIG.py] [--key=value ...], the later overriding -> a namespace. --help prints doc and every setting."""
    if '--help' in argv or '-h' in argv:
        lines = ['  --' + line if line[:1].isalpha() else line for line in DEFAULT.read_text().splitlines()[1:]]
        print(doc.strip(), '', 'Settings (--key=value):', *lines, sep='\n')
        sys.exit()
    config = settings(DEFAULT)
    for argument in argv:
        key, equals, value = argument.removeprefix('--').partition('=')
        if not argument.startswith('--'):
            for key, value in settings(argument).items():
                override(config, key, value, argument)
            continue
        if not isinstance(config.get(key), str) or value in ('True', 'False'):  # compile is 'auto', True or False
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = ast.literal_eval(value)
        override(config, key, value if equals else True, argument)  # a bare --flag is True
    return SimpleNamespace(**config)

def override(config, key, value, where):
    """config[key] = value, if the key exists and the value has its type and range."""
    if key not in config:
        hit = difflib.get_close_matches(key, config, 1, 0.4)
        raise UserError(f'{where}: unknown setting {key!r}, ' + (f'did you mean {hit[0]!r}?' if hit else 'see --help'))
    default = config[key]
    if isinstance(value, (int, float)) and not 0 <= value < 2 ** 63:
        raise UserError(f'{where}: {key} must be between 0 and 2^63, not {value!s:.40}')
    value = float(value) if isinstance(default, float) and type(value) is int else value
    if type(value) is not type(default) and not (key == 'compile' and value in ('auto', True, False)):
        raise UserError(f'{where}: {key} must be of type {type(default).__name__}, like {default!r}, not {value!r}')
    config[key] = value

def restored(saved, where):
    """The saved settings of a run -> a namespace. Settings added since then take their default."""
    config = settings(DEFAULT)
    for key in config.keys() & saved.keys():  # a setting that no longer exists is ignored
        override(config, key, saved[key], where)
    return SimpleNamespace(**config)

def first_change(saved, cfg, where):
    """(key, value) of the first saved setting that makes cfg another run; None if it is the same run."""
    before = vars(restored(saved, where))
    return next(((key, before[key]) for key, value in vars(cfg).items()
                 if key not in FREE and json.dumps(value) != json.dumps(before[key])), None)

def run(main):
    """Call main(). A UserError or an OSError (disk full, no permission) becomes one line on stderr and exit 1."""
    try:
        return main()
    except (UserError, OSError) as e:
        if 'DEBUG' in os.environ:
            raise
        line = ' '.join(f'{Path(sys.argv[0]).name}: {e}'.splitlines())
        sys.exit(1 if int(os.environ.get('RANK', 0)) else line)
    except KeyboardInterrupt:
        sys.exit(130)
