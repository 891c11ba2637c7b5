package cli

import (
	"encoding/csv"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth"
)

const noVolumes = "volumes are not kept: give a path of the host"

// propagations are those of a bind mount.
var propagations = []string{"shared", "rshared", "slave", "rslave", "private", "rprivate"}

// parseVolume reads what follows -v: SOURCE:TARGET[:OPTION,…].
func parseVolume(s string) (berth.Mount, error) {
	words := strings.Split(s, ":")
	bad := func(format string, a ...any) (berth.Mount, error) {
		return berth.Mount{}, fmt.Errorf("-v %s: "+format, append([]any{quoted(s)}, a...)...)
	}
	if len(words) < 2 || words[0] == "" {
		return bad("%s, as /srv/data:/data", noVolumes)
	}
	if len(words) > 3 {
		return bad("SOURCE:TARGET[:OPTIONS] is wanted; a path with a colon needs --mount")
	}
	m := berth.Mount{Type: "bind", Make: true}
	var err error
	if m.Source, err = hostPath(words[0]); err != nil {
		return bad("%w", err)
	}
	if m.Target, err = insidePath(words[1]); err != nil {
		return bad("%w", err)
	}
	if len(words) < 3 {
		return m, nil
	}
	for o := range strings.SplitSeq(words[2], ",") {
		switch {
		case o == "ro" || o == "rw":
			if slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rw") {
				return bad("ro or rw, once")
			}
		case slices.Contains(propagations, o):
			if slices.ContainsFunc(m.Options, func(o string) bool { return slices.Contains(propagations, o) }) {
				return bad("one propagation")
			}
		case o == "z" || o == "Z":
			return bad("%s is refused: Berth gives files no SELinux labels", o)
		case o == "nocopy":
			return bad("%s is refused: it is about volumes, and a path is never copied into", o)
		case o == "consistent" || o == "cached" || o == "delegated":
			return bad("%s is refused: it is about Docker on a Mac", o)
		default:
			return bad("option %s: it is ro, rw or one of %s", quoted(o), strings.Join(propagations, ", "))
		}
		m.Options = append(m.Options, o)
	}
	return m, nil
}

// hostPath makes a source absolute. A word without a slash in front, or a dot,
// is a volume's name, as in Docker.
func hostPath(s string) (string, error) {
	first, _, _ := strings.Cut(s, "/")
	if first != "" && first != "." && first != ".." {
		return "", fmt.Errorf("%s is no path of the host: %s, as ./%s", quoted(s), noVolumes, s)
	}
	if strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%s: no path holds a zero byte", quoted(s))
	}
	return filepath.Abs(s)
}

// insidePath checks a path inside a container.
func insidePath(s string) (string, error) {
	switch clean := path.Clean(s); {
	case !path.IsAbs(s) || strings.ContainsRune(s, 0):
		return "", fmt.Errorf("%s: an absolute path inside is wanted", quoted(s))
	case clean == "/":
		return "", fmt.Errorf("%s: the place of the root file system is taken: give --rootfs", quoted(s))
	default:
		return clean, nil
	}
}

// A mountWords is a --mount as it is read.
type mountWords struct {
	berth.Mount
	readOnly, plain    bool // plain: without what is mounted below
	propagation        string
	size, mode         string
	hasBind, hasTmpfs  bool
	hasSource, hasType bool
}

// parseMount reads what follows --mount: type=bind,source=…,target=….
func parseMount(s string) (berth.Mount, error) {
	r := csv.NewReader(strings.NewReader(s))
	fields, err := r.Read()
	if err != nil {
		return berth.Mount{}, fmt.Errorf("--mount %s: KEY=VALUE,… is wanted, as type=bind,source=/srv,target=/srv", quoted(s))
	}
	var m mountWords
	for _, f := range fields {
		if err := m.field(f); err != nil {
			return berth.Mount{}, fmt.Errorf("--mount %s: %w", quoted(s), err)
		}
	}
	out, err := m.mount()
	if err != nil {
		return berth.Mount{}, fmt.Errorf("--mount %s: %w", quoted(s), err)
	}
	return out, nil
}

func (m *mountWords) field(f string) (err error) {
	key, value, with := strings.Cut(f, "=")
	key = strings.ToLower(key)
	if !with {
		if key != "readonly" && key != "ro" && key != "bind-nonrecursive" {
			return fmt.Errorf("%s: KEY=VALUE is wanted", quoted(f))
		}
		value = "true"
	}
	switch key {
	case "type":
		m.Type, m.hasType = strings.ToLower(value), true
	case "source", "src":
		m.hasSource = true
		m.Source, err = hostPath(value)
	case "target", "dst", "destination":
		m.Target, err = insidePath(value)
	case "readonly", "ro":
		m.readOnly, err = parseTruth(f, value)
	case "bind-propagation":
		m.hasBind, m.propagation = true, strings.ToLower(value)
		if !slices.Contains(propagations, m.propagation) {
			err = fmt.Errorf("%s: one of %s", f, strings.Join(propagations, ", "))
		}
	case "bind-nonrecursive":
		m.hasBind = true
		m.plain, err = parseTruth(f, value)
	case "bind-recursive":
		m.hasBind, m.plain = true, value == "disabled"
		if value != "disabled" && value != "enabled" {
			err = fmt.Errorf("%s: enabled or disabled; that what is mounted below is writable or not by itself cannot be said", f)
		}
	case "tmpfs-size":
		m.hasTmpfs = true
		var n int64
		n, err = parseSize(value)
		m.size = "size=" + strconv.FormatInt(n, 10)
	case "tmpfs-mode":
		m.hasTmpfs, m.mode = true, "mode="+value
		if _, err = strconv.ParseUint(value, 8, 12); err != nil {
			err = fmt.Errorf("%s: an octal mode is wanted, as 1777", f)
		}
	case "consistency":
		err = fmt.Errorf("%s is refused: it is about Docker on a Mac", f)
	case "volume-nocopy", "volume-label", "volume-driver", "volume-opt", "volume-subpath", "image-subpath":
		err = fmt.Errorf("%s is refused: %s", f, noVolumes)
	default:
		err = fmt.Errorf("no key %s", quoted(key))
	}
	return err
}

func parseTruth(field, value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("%s: true or false", field)
	}
	return b, nil
}

// mount checks that the fields fit together.
func (m *mountWords) mount() (berth.Mount, error) {
	switch {
	case !m.hasType || m.Type == "volume":
		return m.Mount, fmt.Errorf("%s, with type=bind, or say type=tmpfs", noVolumes)
	case m.Type != "bind" && m.Type != "tmpfs":
		return m.Mount, fmt.Errorf("type %s is refused: it is bind or tmpfs", quoted(m.Type))
	case m.Target == "":
		return m.Mount, fmt.Errorf("target=PATH is missing")
	case m.Type == "bind" && m.hasTmpfs, m.Type == "tmpfs" && m.hasBind:
		return m.Mount, fmt.Errorf("keys of a bind mount and of a tmpfs do not go together")
	case m.Type == "bind" && !m.hasSource:
		return m.Mount, fmt.Errorf("source=PATH is missing")
	case m.Type == "tmpfs" && m.hasSource:
		return m.Mount, fmt.Errorf("a tmpfs has no source")
	}
	if m.plain {
		m.Options = append(m.Options, "bind")
	}
	if m.readOnly {
		m.Options = append(m.Options, "ro")
	}
	for _, o := range []string{m.propagation, m.size, m.mode} {
		if o != "" {
			m.Options = append(m.Options, o)
		}
	}
	return m.Mount, nil
}

// parseTmpfs reads what follows --tmpfs: TARGET[:OPTION,…].
func parseTmpfs(s string) (berth.Mount, error) {
	target, options, _ := strings.Cut(s, ":")
	m := berth.Mount{Type: "tmpfs"}
	var err error
	if m.Target, err = insidePath(target); err != nil {
		return berth.Mount{}, fmt.Errorf("--tmpfs %w", err)
	}
	if options != "" {
		m.Options = strings.Split(options, ",")
	}
	return m, nil
}

// parseDevice reads what follows --device: SOURCE[:TARGET][:PERMISSIONS].
func parseDevice(s string) (berth.Device, error) {
	bad := func(why string) (berth.Device, error) {
		return berth.Device{}, fmt.Errorf("--device %s: %s", quoted(s), why)
	}
	words := strings.Split(s, ":")
	d := berth.Device{Source: words[0], Target: words[0], Permissions: "rwm"}
	switch {
	case len(words) == 2 && isPermissions(words[1]):
		d.Permissions = words[1]
	case len(words) == 2:
		d.Target = words[1]
	case len(words) == 3:
		d.Target, d.Permissions = words[1], words[2]
	case len(words) > 3:
		return bad("SOURCE[:TARGET][:PERMISSIONS] is wanted, as /dev/fuse or /dev/sda:/dev/xvda:r")
	}
	switch {
	case strings.Contains(s, "*"):
		return bad("a pattern is refused: name each device")
	case !path.IsAbs(d.Source) && strings.Contains(d.Source, "="):
		return bad("devices of CDI are refused: give the path of a device node")
	case !path.IsAbs(d.Source) || !path.IsAbs(d.Target) || strings.ContainsRune(s, 0):
		return bad("absolute paths are wanted, as /dev/fuse")
	case !isPermissions(d.Permissions):
		return bad("permissions are r, w and m, each once")
	}
	d.Source, d.Target = path.Clean(d.Source), path.Clean(d.Target)
	return d, nil
}

func isPermissions(s string) bool {
	return s != "" && strings.Trim(s, "rwm") == "" && strings.Count(s, "r") <= 1 && strings.Count(s, "w") <= 1 && strings.Count(s, "m") <= 1
}
