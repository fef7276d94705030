"""
Settings, nanoGPT's way: config/default.py names every one, a config file overrides some, --key=value overrides that.
A config file is Python and is executed: run none that you have not read.
"""
import ast
import difflib
import json
import os
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

DEFAULT = Path(__file__).parent / 'default.py'
# settings that do not change what is learned: a run may be resumed, or found finished, with others
FREE = {'out_dir', 'micro_batch_size', 'shard', 'eval_interval', 'eval_iters', 'checkpoint_interval', 'log_interval', 'resume', 'overwrite',
        'device', 'dtype', 'compile', 'num_workers'}


class UserError(Exception):
    """A mistake of the user's, in one line: what, where, and what to do. Shown without a traceback (see run)."""

    def __str__(self):
        return ' '.join(super().__str__().splitlines())  # whatever a stranger's file has put into it


def check_keys(text, where):
    """Raises UserError for a dictionary that names a key twice: Python would keep the second and say nothing."""
    for node in ast.walk(ast.parse(text)):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)] if isinstance(node, ast.Dict) else []
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise UserError(f'{where}: {twice[0]!r} is there twice')


def settings(path):
    """The variables that a config file sets, less its modules, functions and _private names."""
    try:
        check_keys(Path(path).read_bytes(), path)
        variables = runpy.run_path(str(path))
    except UserError:
        raise
    except Exception as e:  # whatever a stranger's Python may raise
        raise UserError(f'config {path} cannot be read: {type(e).__name__}: {e}') from None
    return {k: v for k, v in variables.items() if not (k.startswith('_') or callable(v) or isinstance(v, ModuleType))}


def load(argv, doc=''):
    """argv [CONFIG.py] [--key=value ...] -> a namespace of all settings. --help prints doc and every setting, and exits.
    Raises UserError for an unknown key (naming the nearest), a wrong type, or a config file that cannot be read."""
    config = settings(DEFAULT)
    if '--help' in argv or '-h' in argv:
        sys.exit(print(f'{doc.strip()}\n\nSettings (--key=value):\n{help_text()}'))
    files = [a for a in argv if not a.startswith('--')]
    if len(files) > 1:
        raise UserError(f'one config file at most, not {len(files)}: {" ".join(files)} (a setting is --key=value)')
    for key, value in settings(files[0]).items() if files else ():
        override(config, key, value, files[0])
    for argument in (a for a in argv if a.startswith('--')):
        key, has_value, text = argument[2:].partition('=')
        try:
            value = ast.literal_eval(text) if has_value else True  # a bare --flag is True
            check_keys(text, argument)
        except (ValueError, SyntaxError):
            value = text
        override(config, key, text if isinstance(config.get(key), str) and not isinstance(value, bool) else value, argument)
    return SimpleNamespace(**config)


def override(config, key, value, where):
    """config[key] = value. Raises UserError, naming where, for an unknown key, a wrong type or a negative number."""
    if key not in config:
        near = difflib.get_close_matches(key, config, 1, 0.4)
        raise UserError(f'{where}: no setting is called {key!r}' + (f', did you mean {near[0]!r}?' if near else '; see --help'))
    default = config[key]
    if isinstance(value, (int, float)) and not 0 <= value < 2 ** 63:
        raise UserError(f'{where}: {key} must be a number from 0 on that fits 64 bits, not {value!s:.40}')
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default) and not (default == 'auto' and isinstance(value, bool)):
        raise UserError(f'{where}: {key} must be of type {type(default).__name__}, like {default!r}, not {value!r}')
    config[key] = value


def restored(saved, where):
    """The settings of a run as JSON has them -> a namespace; those that it lacks have today's defaults. Raises UserError."""
    config = settings(DEFAULT)
    for key, value in saved.items():
        if key in config:  # or a setting that no longer is
            override(config, key, value, where)
    return SimpleNamespace(**config)


def fits(content, shape):
    """Whether what JSON gave has a shape: a type (float: any number); (shape, shape), one of them; [shape], a list of it;
    {str: shape}, a dictionary of it; {'key': shape, 'key?': shape}, one with these keys, of which some may be missing."""
    if isinstance(shape, tuple):
        return any(fits(content, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(content, list) and all(fits(item, shape[0]) for item in content)
    if isinstance(shape, dict):
        if not isinstance(content, dict):
            return False
        shapes = dict.fromkeys(content, shape[str]) if str in shape else shape
        return all(fits(content[key.rstrip('?')], of) if key.rstrip('?') in content else key.endswith('?') for key, of in shapes.items())
    if shape in (int, float):
        return type(content) in (int, shape) and abs(content) < 2 ** 63
    return isinstance(content, shape)


def read_json(path, remedy, shape=dict):
    """The content of a JSON file; None where there is no file. Raises UserError, which ends with the remedy, for a damaged one,
    and for one of another shape: JSON, but not ours."""
    try:
        content = json.loads(Path(path).read_text('utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise UserError(f'{path} is damaged: {remedy}') from None
    if not fits(content, shape):
        raise UserError(f'{path} is not what this program writes there: {remedy}')
    return content


def help_text():
    """Every line of default.py that sets something, and its section headings."""
    lines = DEFAULT.read_text().splitlines()
    return '\n'.join(re.sub(r'^(?=\w)', '  --', line) for line in lines[1:])


def run(main):
    """What main() returns. A UserError, or one of the system's (no space, no permission), becomes one line on stderr, of the
    first process only, and exit status 1."""
    try:
        return main()
    except (UserError, OSError) as e:
        sys.exit(1 if int(os.environ.get('RANK', 0)) else f'{Path(sys.argv[0]).name}: {e}')
    except KeyboardInterrupt:
        sys.exit(130)
