package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// filters say for each key of --filter whether a thing matches a value.
type filters[T any] map[string]func(thing T, value string) bool

// keys are the keys, for the help.
func (f filters[T]) keys() string {
	return strings.Join(slices.Sorted(maps.Keys(f)), ", ")
}

// compile turns words KEY=VALUE into one test. Values of one key are
// alternatives, but a thing can have many labels: it must have all of them.
func (f filters[T]) compile(words []string) (func(T) bool, error) {
	byKey := map[string][]string{}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if _, known := f[key]; !ok || !known {
			return nil, usage(fmt.Errorf("--filter %q: KEY=VALUE is wanted, with a key of: %s", w, f.keys()))
		}
		byKey[key] = append(byKey[key], value)
	}
	return func(thing T) bool {
		for key, values := range byKey {
			hit := func(v string) bool { return f[key](thing, v) }
			miss := func(v string) bool { return !hit(v) }
			if key == "label" && slices.ContainsFunc(values, miss) || key != "label" && !slices.ContainsFunc(values, hit) {
				return false
			}
		}
		return true
	}, nil
}

// hasLabel matches KEY or KEY=VALUE.
func hasLabel(labels map[string]string, want string) bool {
	key, value, with := strings.Cut(want, "=")
	v, ok := labels[key]
	return ok && (!with || v == value)
}

// says reports whether the text of a truth value means b.
func says(text string, b bool) bool {
	v, err := strconv.ParseBool(text)
	return err == nil && v == b
}

// keyValues turns words KEY=VALUE of a flag into a map.
func keyValues(flag string, words []string) (map[string]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		if k == "" {
			return nil, usage(fmt.Errorf("--%s %q: KEY=VALUE is wanted", flag, w))
		}
		out[k] = v
	}
	return out, nil
}

// labelsText is labels as Docker lists them.
func labelsText(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}
