"""Settings, nanoGPT's way: config/default.py lists them all, a config file sets some of them, and
--key=value overrides both. A config file is Python and is executed: read it first. A user's mistake
ends any script with one line: docstrings do not say so again. DEBUG=1 shows the traceback."""
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

@contextlib.contextmanager
def reading(path, remedy):
    """Turn whatever goes wrong while a file is read or converted into one line with the remedy."""
    try:
        yield
    except Exception as e:  # json, numpy, torch and zip have a hundred ways to fail
        if 'DEBUG' in os.environ:
            raise
        reason = ' '.join(f'{type(e).__name__}: {e}'.split())
        sys.exit(f'{path} cannot be read ({reason:.200}): {remedy}')

def read_json(path, remedy):
    """The dictionary in a JSON file; None if there is no file."""
    with reading(path, remedy):
        return dict(json.loads(Path(path).read_text('utf-8'))) if os.path.lexists(path) else None

def read(path):
    """The variables that a config file sets, without modules, functions and _private names."""
    sys.path.insert(0, str(Path(path).resolve().parent))  # it may import its neighbours
    with reading(path, 'a config file is Python, a setting is written --key=value'):
        variables = runpy.run_path(str(path))
    sys.path.pop(0)
    return {key: value for key, value in variables.items() if not (
        key.startswith('_') or callable(value) or isinstance(value, ModuleType))}

def override(settings, overrides, where):
    """Change settings (a dictionary) that exist to values of their type and range."""
    for key, value in overrides.items():
        if key not in settings:
            nearest = ' or '.join(difflib.get_close_matches(key, settings, 2)) or 'one of --help'
            sys.exit(f'{where}: unknown setting {key!r}, did you mean {nearest}?')
        default = settings[key]
        switch = key == 'compile' and str(value) in ('auto', 'True', 'False')
        with reading(f'{where}: {key}', f'it must be like {default!r}'):  # without numpy's types
            value = json.loads(json.dumps(value, default=lambda array: array.tolist()))
        kind = type(default)
        if isinstance(value, (int, float)) and not 0 <= value < 2 ** 63:
            sys.exit(f'{where}: {key} must be between 0 and 2^63, not {value!s:.40}')
        if {type(value), kind} == {int, float} and value == kind(value):
            value = kind(value)  # 1e3 steps
        if type(value) is not kind and not switch:
            sys.exit(f'{where}: {key} must be like {default!r}, not {value!r}: --{key}=VALUE')
        settings[key] = os.path.expanduser(value) if isinstance(value, str) else value
    return settings

def load(argv, doc=''):
    """[CONFIG.py] [--key=value ...], each overriding those before -> a namespace of settings."""
    if '--help' in argv or '-h' in argv:
        print(doc.strip(), 'Settings, written --key=value:', DEFAULT.read_text('utf-8'), sep='\n\n')
        sys.exit()
    settings = read(DEFAULT)
    for argument in argv:
        key, equals, text = argument.removeprefix('--').partition('=')
        value = text if equals else True  # a bare --flag
        if not isinstance(settings.get(key), str) or text in ('True', 'False'):
            with contextlib.suppress(Exception):  # a string needs no quotes
                value = ast.literal_eval(text)
        override(settings, {key: value} if argument[:2] == '--' else read(argument), argument)
    return SimpleNamespace(**settings)

def restored(saved, where):
    """Saved settings -> a namespace, with today's default for new ones, without those of old."""
    settings = read(DEFAULT)
    known = {key: value for key, value in saved.items() if key in settings}
    return SimpleNamespace(**override(settings, known, where))

def run(main):
    """Call main(). A full disk, say, is one line too; under torchrun, rank 0 alone prints it."""
    sys.stdout.reconfigure(errors='replace')  # a terminal may lack a character
    try:
        main()
    except (OSError, SystemExit, KeyboardInterrupt) as e:
        line = ' '.join(str(e).split()) if isinstance(e, OSError) else getattr(e, 'code', 130)
        sys.exit(1 if isinstance(line, str) and int(os.environ.get('RANK', 0)) else line)
