package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/oci"
)

// parseEnvFile reads lines NAME=value as Docker does: a value is everything
// behind the "=", quotes and blanks too; a name alone is looked up.
func parseEnvFile(text []byte, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	n := 0
	for raw := range bytes.Lines(text) {
		n++
		if !utf8.Valid(raw) || bytes.ContainsRune(raw, 0) {
			return nil, fmt.Errorf("line %d: it is no text", n)
		}
		line := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
		line = strings.TrimLeftFunc(line, unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, with := strings.Cut(line, "=")
		switch {
		case name == "":
			return nil, fmt.Errorf("line %d: a name is missing before the \"=\"", n)
		case strings.ContainsAny(name, " \t"):
			return nil, fmt.Errorf("line %d: %s: a name has no blanks", n, quoted(name))
		case with:
			out = append(out, line)
		default:
			if v, ok := lookup(name); ok {
				out = append(out, name+"="+v)
			}
		}
	}
	return out, nil
}

// environment reads --env-file and -e. What comes later wins, and what is typed
// wins over files.
func environment(files, words []string) ([]string, error) {
	var all []string
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		lines, err := parseEnvFile(text, os.LookupEnv)
		if err != nil {
			return nil, fmt.Errorf("--env-file %s: %w", name, err)
		}
		all = append(all, lines...)
	}
	for _, w := range words {
		name, _, with := strings.Cut(w, "=")
		if name == "" || strings.ContainsRune(w, 0) {
			return nil, fmt.Errorf("-e %s: NAME=VALUE is wanted, or a NAME that is set here", quoted(w))
		}
		if !with {
			value, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			w += "=" + value
		}
		all = append(all, w)
	}
	place := map[string]int{}
	var out []string
	for _, w := range all {
		name, _, _ := strings.Cut(w, "=")
		if i, twice := place[name]; twice {
			out[i] = w
			continue
		}
		place[name] = len(out)
		out = append(out, w)
	}
	return out, nil
}

// labels reads --label-file and -l.
func labels(files, words []string) (map[string]string, error) {
	var all []string
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--label-file: %w", err)
		}
		lines, err := parseEnvFile(text, func(string) (string, bool) { return "", true })
		if err != nil {
			return nil, fmt.Errorf("--label-file %s: %w", name, err)
		}
		all = append(all, lines...)
	}
	return keyValues("label", append(all, words...))
}

// parseUlimit reads what follows --ulimit: NAME=SOFT[:HARD].
func parseUlimit(s string) (berth.Ulimit, error) {
	name, value, _ := strings.Cut(s, "=")
	soft, hard, both := strings.Cut(value, ":")
	if !both {
		hard = soft
	}
	u := berth.Ulimit{Name: name}
	var err1, err2 error
	u.Soft, err1 = strconv.ParseInt(soft, 10, 64)
	u.Hard, err2 = strconv.ParseInt(hard, 10, 64)
	if name == "" || err1 != nil || err2 != nil {
		return berth.Ulimit{}, fmt.Errorf("--ulimit %s: NAME=SOFT[:HARD] is wanted, as nofile=1024:4096; -1 is no limit", quoted(s))
	}
	return u, nil
}

func parseUlimits(words []string) (out []berth.Ulimit, err error) {
	for _, w := range words {
		u, err := parseUlimit(w)
		if err != nil {
			return nil, err
		}
		// The kernel has one limit of a name: the last one counts.
		out = slices.DeleteFunc(out, func(x berth.Ulimit) bool { return x.Name == u.Name })
		out = append(out, u)
	}
	return out, nil
}

// parseRestart reads what follows --restart.
func parseRestart(s string) (berth.Restart, error) {
	policy, times, with := strings.Cut(s, ":")
	r := berth.Restart{Policy: policy}
	switch {
	case s == "":
		return r, nil
	case !slices.Contains([]string{"no", "always", "unless-stopped", "on-failure"}, policy):
	case !with:
		return r, nil
	case policy != "on-failure":
		return r, fmt.Errorf("--restart %s: a number of times goes with on-failure only", quoted(s))
	default:
		n, err := strconv.ParseUint(times, 10, 31)
		if err == nil {
			r.Retries = int(n)
			return r, nil
		}
	}
	return berth.Restart{}, fmt.Errorf("--restart %s: no, always, unless-stopped or on-failure[:TIMES] is wanted", quoted(s))
}

// parseSignal reads a signal by name, with or without SIG, or by number.
func parseSignal(s string) (unix.Signal, error) {
	n, err := oci.ParseSignal(s)
	if err != nil {
		return 0, fmt.Errorf("%s: a signal is wanted, as TERM, SIGHUP or 9", quoted(s))
	}
	return n, nil
}

// signalWord is the name of a signal, or its number if it has none.
func signalWord(s unix.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return strconv.Itoa(int(s))
}

// parseKeys reads the keys that detach from a terminal, of which there is at
// least one.
func parseKeys(s string) (oci.DetachKeys, error) {
	keys, err := oci.ParseDetachKeys(s)
	if s == "" {
		err = oci.ErrNoKeys
	}
	if err != nil {
		return nil, fmt.Errorf("--detach-keys %s: %w", quoted(s), err)
	}
	return keys, nil
}

// parseSysctls reads --sysctl NAME=VALUE.
func parseSysctls(words []string) (map[string]string, error) {
	out := map[string]string{}
	for _, w := range words {
		name, value, with := strings.Cut(w, "=")
		if !with || name == "" {
			return nil, fmt.Errorf("--sysctl %s: NAME=VALUE is wanted, as net.ipv4.ip_forward=1", quoted(w))
		}
		out[name] = value
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// capabilities are names without CAP_, in capitals, each once.
func capabilities(words []string) (out []string) {
	for _, w := range words {
		if name := strings.TrimPrefix(strings.ToUpper(w), "CAP_"); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// parseSecurity reads what follows --security-opt into s.
func parseSecurity(word string, s *berth.Security) error {
	key, value, with := strings.Cut(word, "=")
	if !with {
		key, value, with = strings.Cut(word, ":") // Docker's older way
	}
	var err error
	switch {
	case key == "no-new-privileges":
		s.NoNewPrivileges = true
		if with {
			if s.NoNewPrivileges, err = strconv.ParseBool(value); err != nil {
				err = errors.New("true or false")
			}
		}
	case key == "seccomp" && value == "builtin":
		s.Seccomp = ""
	case key == "seccomp" && value == "unconfined":
		s.Seccomp = value
	case key == "seccomp" && value != "":
		s.Seccomp, err = absolute(value)
	case key == "apparmor" && value != "":
		s.AppArmor = value
	case key == "label":
		err = errors.New("refused: Berth gives processes no SELinux labels")
	case key == "systempaths":
		err = errors.New("refused: parts of /proc and /sys are covered but with --privileged")
	case key == "writable-cgroups":
		err = errors.New("refused: a container's cgroup is read-only inside but with --privileged")
	default:
		err = errors.New("no-new-privileges, seccomp=FILE|builtin|unconfined or apparmor=PROFILE|unconfined is wanted")
	}
	if err != nil {
		return fmt.Errorf("--security-opt %s: %w", quoted(word), err)
	}
	return nil
}
