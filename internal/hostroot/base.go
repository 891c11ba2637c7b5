package hostroot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// baseDirs are the directories of "/" that a container finds empty.
var baseDirs = []struct {
	path string
	mode uint32
}{
	{"dev", 0o755}, {"home", 0o755}, {"media", 0o755}, {"mnt", 0o755}, {"proc", 0o555}, {"root", 0o700}, {"run", 0o755},
	{"run/lock", 0o1777}, {"srv", 0o755}, {"sys", 0o555}, {"sys/devices", 0o555},
	{"sys/devices/system", 0o555}, {"sys/fs", 0o555}, {"sys/fs/cgroup", 0o555}, {"tmp", 0o1777}, {"var", 0o755}, {"var/cache", 0o755},
	{"var/lib", 0o755}, {"var/log", 0o755}, {"var/spool", 0o755}, {"var/tmp", 0o1777},
}

// baseLinks are the links of "/" beside those of the host.
var baseLinks = []link{{"var/run", "/run"}, {"var/lock", "/run/lock"}}

// makeBase makes "/": the directories and links every container has, and the
// places of the trees.
func makeBase(at string, all []tree, links []link) error {
	for _, d := range baseDirs {
		if err := mkdir(filepath.Join(at, d.path), d.mode); err != nil {
			return err
		}
	}
	for _, l := range append(links, baseLinks...) {
		if err := os.Symlink(l.target, filepath.Join(at, l.name)); err != nil {
			return err
		}
	}
	for _, t := range all {
		if t.mounted {
			continue // its place is in another tree
		}
		path := at
		for name := range strings.SplitSeq(strings.Trim(t.path, "/"), "/") {
			path = filepath.Join(path, name)
			// Lstat: a link of the base leads to the host's "/" from here.
			if _, err := os.Lstat(path); err == nil {
				continue
			}
			if err := mkdir(path, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeEtc makes what lies over the host's /etc: the three files that the
// runtime mounts over, which are links on some hosts; mtab; and passwords, which
// the host's are not readable, but su, cron and useradd stop without. Every
// account of them is locked.
func makeEtc(at, etc string) error {
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(at, name), nil, 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink("../proc/self/mounts", filepath.Join(at, "mtab")); err != nil {
		return err
	}
	for _, f := range []struct{ from, to, rest string }{
		{"passwd", "shadow", ":*:19000:0:99999:7:::\n"}, {"group", "gshadow", ":*::\n"},
	} {
		names, err := os.ReadFile(filepath.Join(etc, f.from))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(at, f.to), locked(names, f.rest), 0o640); err != nil {
			return err
		}
	}
	return nil
}

// locked has a line for each account of a passwd or group file.
func locked(accounts []byte, rest string) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(accounts) {
		name, _, ok := bytes.Cut(line, []byte(":"))
		if ok && len(name) > 0 && !bytes.ContainsAny(name[:1], "#+-") {
			b.Write(name)
			b.WriteString(rest)
		}
	}
	return b.Bytes()
}
