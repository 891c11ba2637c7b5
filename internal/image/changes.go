package image

import (
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// change does to a configuration what an instruction of a Dockerfile says.
func change(c *v1.Config, line string) error {
	bad := func(why string) error { return fmt.Errorf("change %q: %s: %w", clip(line), why, berth.ErrInvalid) }
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return bad("nothing follows the instruction")
	}
	switch strings.ToUpper(verb) {
	case "CMD":
		c.Cmd = command(rest)
	case "ENTRYPOINT":
		c.Entrypoint = command(rest)
	case "USER":
		c.User = rest
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "WORKDIR":
		c.WorkingDir = path.Join("/", c.WorkingDir, rest)
		if path.IsAbs(rest) {
			c.WorkingDir = path.Clean(rest)
		}
	case "VOLUME":
		return changeSet(&c.Volumes, volumes(rest), func(string) bool { return true }, bad)
	case "EXPOSE":
		ports, err := words(rest)
		if err != nil {
			return bad(err.Error())
		}
		return changeSet(&c.ExposedPorts, exposed(ports), validPort, bad)
	case "ENV", "LABEL":
		pairs, err := assignments(rest)
		if err != nil {
			return bad(err.Error())
		}
		for _, p := range pairs {
			if strings.EqualFold(verb, "ENV") {
				c.Env = setEnv(c.Env, p[0], p[1])
				continue
			}
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[p[0]] = p[1]
		}
	default:
		return bad("not an instruction that says how an image is run")
	}
	return nil
}

// command reads ["program","argument"], or a line for the shell.
func command(s string) []string {
	var words []string
	if json.Unmarshal([]byte(s), &words) == nil && words != nil {
		return words
	}
	return []string{"/bin/sh", "-c", s}
}

func volumes(s string) []string {
	var dirs []string
	if json.Unmarshal([]byte(s), &dirs) == nil {
		return dirs
	}
	return strings.Fields(s)
}

// exposed gives ports that name no protocol the one that Docker does.
func exposed(ports []string) (full []string) {
	for _, p := range ports {
		if !strings.Contains(p, "/") {
			p += "/tcp"
		}
		full = append(full, strings.ToLower(p))
	}
	return full
}

func validPort(s string) bool {
	ports, proto, _ := strings.Cut(s, "/")
	first, last, _ := strings.Cut(ports, "-")
	for _, p := range []string{first, last} {
		if n, err := strconv.Atoi(p); (err != nil || n < 1 || n > 65535) && !(p == last && last == "") {
			return false
		}
	}
	return first != "" && (proto == "tcp" || proto == "udp" || proto == "sctp")
}

func changeSet(set *map[string]struct{}, add []string, valid func(string) bool, bad func(string) error) error {
	for _, s := range add {
		if !valid(s) {
			return bad(s + " is not PORT or PORT/PROTOCOL")
		}
		if *set == nil {
			*set = map[string]struct{}{}
		}
		(*set)[s] = struct{}{}
	}
	return nil
}

func setEnv(env []string, name, value string) []string {
	for i, e := range env {
		if strings.HasPrefix(e, name+"=") {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}

// assignments reads NAME=value NAME="a value", or NAME and one value of the
// rest of the line.
func assignments(s string) (pairs [][2]string, err error) {
	first, rest, _ := strings.Cut(s, " ")
	if !strings.Contains(first, "=") {
		if rest = strings.TrimSpace(rest); rest == "" {
			return nil, fmt.Errorf("%s has no value", clip(first))
		}
		return [][2]string{{first, rest}}, nil
	}
	ws, err := words(s)
	if err != nil {
		return nil, err
	}
	for _, w := range ws {
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not NAME=VALUE", clip(w))
		}
		pairs = append(pairs, [2]string{name, value})
	}
	return pairs, nil
}

// words splits at spaces that are not quoted, and takes the quotes away.
func words(s string) (ws []string, err error) {
	var w strings.Builder
	var quote rune
	inside, escaped := false, false
	for _, r := range s {
		switch {
		case escaped:
			w.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inside = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, inside = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if inside {
				ws = append(ws, w.String())
			}
			w.Reset()
			inside = false
		default:
			w.WriteRune(r)
			inside = true
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("a quote has no end")
	}
	if inside {
		ws = append(ws, w.String())
	}
	return ws, nil
}
