from prunekit import errors


def test_a_near_name_is_suggested():
    assert errors.nearest("corelation", ["correlation", "magnitude"]) == " (did you mean 'correlation'?)"


def test_with_nothing_near_all_names_are_listed():
    assert errors.nearest("zzz", ["b", "a"]) == " (known: a, b)"
    assert errors.nearest("zzz", []) == " (none is known)"


def test_all_errors_are_prunekit_errors():
    kinds = [value for value in vars(errors).values() if getattr(value, "__module__", "") == errors.__name__]
    classes = [kind for kind in kinds if isinstance(kind, type)]
    assert len(classes) > 1
    assert all(issubclass(kind, errors.PrunekitError) for kind in classes)
