"""Faults in `gradest.discovery`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "gradest/discovery/loading.py",
        'if cls.name not in getattr(owner, f"{kind}s"):',
        'if cls.name not in getattr(owner, f"{kind}s") or owner not in self._earlier:',
        "a stranger's plugin takes the name of a built-in",
        "tests/discovery/test_loading.py -k 'taken or every_bad'",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        "self._loaded, self._plugins, self._failures = False, (), ()",
        "self._loaded, self._plugins, self._failures = True, (), ()",
        "after an interrupt while plugins load there are none",
        "tests/discovery/test_loading.py -k 'interrupt or strict'",
    ),
    Mutation(
        "gradest/discovery/entry_points.py",
        "return not source.built_in, _normalised(source.distribution)",
        "return source.built_in, _normalised(source.distribution)",
        "strangers' plugins load before the built-in ones",
        "tests/discovery/test_loading.py -k 'order or taken'",
    ),
    Mutation(
        "gradest/discovery/validation.py",
        "if not isinstance(summary, str) or len(summary.splitlines()) != 1:",
        "if not isinstance(summary, str) or len(summary.splitlines()) > 1:",
        "a plugin without a summary is accepted",
        "tests/discovery/test_loading.py -k where_and_why",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        "if _definition(registered) == _definition(plugin)]",
        "if registered is plugin]",
        "the cell of a notebook that registers a class cannot be run twice",
        "tests/discovery/test_register.py -k 'defined_again'",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        "raise self.as_fault(error, plugin, method) from error",
        "raise self.as_fault(error, plugin, method) if isinstance(error, Exception) else error",
        "a plugin that raises a CancelledError ends the listing of all",
        "tests/discovery/test_faults.py -k 'descriptions or go_on or which_fit'",
    ),
    Mutation(
        "gradest/discovery/faults.py",
        '        text = " ".join(str(error).split())\n    except BaseException as failed:',
        '        text = " ".join(str(error).split())\n    except KeyboardInterrupt as failed:',
        "an error whose str() fails escapes",
        "tests/discovery/test_faults.py -k 'descriptions or while_it_loads'",
    ),
    Mutation(
        "gradest/discovery/faults.py",
        "    except raised:\n        raise\n    except BaseException as error:",
        "    except raised:\n        raise\n    except Exception as error:",
        "a plugin whose import raises SystemExit empties the registry",
        "tests/discovery/test_faults.py -k while_it_loads",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        'read_attribute(cls, "__module__"), type.__dict__["__qualname__"].__get__(cls)',
        'read_attribute(cls, "__module__")',
        "a class replaces another one of the same module and name",
        "tests/discovery/test_register.py -k 'another_class'",
    ),
)
