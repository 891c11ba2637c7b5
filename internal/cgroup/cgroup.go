// Package cgroup knows where a container's control group is, on v1, hybrid and
// v2 hosts: what is used in it, which limits this kernel has, and how it ends.
//
// A group is a path, as /berth/ID, and is the same path below every hierarchy.
// The runtime makes the groups of containers and writes their limits; the one
// limit it does not change afterwards is [Group.Throttle]'s. Pausing is the
// runtime's, and network statistics are not of a cgroup.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"berth"
)

// A Version is how the hierarchies of a host are laid out.
type Version string

// The layouts. Runtimes use the controllers of v1 on V1 and on Hybrid.
const (
	V1     Version = "v1"
	Hybrid Version = "hybrid" // controllers on v1, and an empty v2 hierarchy
	V2     Version = "v2"
)

// unifiedRoot is where runtimes expect the v2 hierarchy, or the directory of
// the v1 ones.
const unifiedRoot = "/sys/fs/cgroup"

// A Mode is how this host has its control groups.
type Mode struct {
	Version Version
	// Mounts is where the hierarchy of each controller is: "memory",
	// "name=systemd". Block I/O is "io" on v2 too and "blkio" on v1. The v2
	// hierarchy of a hybrid host, which has no controllers, is "".
	Mounts map[string]string
	// Swap reports whether memory and swap can be bounded together.
	Swap bool
}

// Detect returns how this host has its control groups.
func Detect() (Mode, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Mode{}, fmt.Errorf("detect cgroups: %w", err)
	}
	m := parse(string(info))
	if m.Version == V2 {
		b, err := os.ReadFile(path.Join(unifiedRoot, "cgroup.controllers"))
		if err != nil {
			return Mode{}, fmt.Errorf("detect cgroups: %w", err)
		}
		for _, c := range strings.Fields(string(b)) {
			m.Mounts[c] = unifiedRoot
		}
	}
	if m.Version == "" {
		return Mode{}, fmt.Errorf("detect cgroups: none is mounted below %s: %w: mount -t cgroup2 cgroup2 %[1]s", unifiedRoot, berth.ErrUnsupported)
	}
	m.Swap = m.swapAccounting()
	return m, nil
}

// controllers are the mount options of a v1 hierarchy that name controllers.
var controllers = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma",
}

// parse reads the cgroup mounts from /proc/PID/mountinfo (proc(5)). What is
// mounted elsewhere than below /sys/fs/cgroup is no runtime's.
func parse(mountinfo string) Mode {
	m := Mode{Mounts: map[string]string{}}
	for line := range strings.Lines(mountinfo) {
		head, tail, _ := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if len(h) < 5 || len(t) < 3 || h[4] != unifiedRoot && path.Dir(h[4]) != unifiedRoot {
			continue
		}
		switch {
		case t[0] == "cgroup2" && h[4] == unifiedRoot:
			m.Version = V2
		case t[0] == "cgroup2":
			m.Mounts[""] = h[4]
		case t[0] == "cgroup":
			for o := range strings.SplitSeq(t[2], ",") {
				if strings.HasPrefix(o, "name=") || slices.Contains(controllers, o) {
					m.Mounts[o] = h[4]
				}
			}
		}
	}
	_, v2 := m.Mounts[""]
	switch {
	case m.Version == V2:
		m.Mounts = map[string]string{"": unifiedRoot}
	case len(m.Mounts) == 0, len(m.Mounts) == 1 && v2: // nothing a runtime can use
	case v2:
		m.Version = Hybrid
	default:
		m.Version = V1
	}
	return m
}

// Has reports whether a controller can be used: cpu, memory, pids, cpuset, io.
func (m Mode) Has(controller string) bool {
	_, ok := m.Mounts[m.name(controller)]
	return ok
}

// Controllers returns what can be used, sorted.
func (m Mode) Controllers() []string {
	var names []string
	for c := range m.Mounts {
		if c != "" && !strings.HasPrefix(c, "name=") {
			names = append(names, c)
		}
	}
	return slices.Sorted(slices.Values(names))
}

// name is what a controller is called here.
func (m Mode) name(controller string) string {
	if controller == "io" && m.Version != V2 {
		return "blkio"
	}
	return controller
}

// A Group is a control group, whether it is there or not.
type Group struct {
	mode Mode
	path string
}

// Group returns the group of a path such as /berth/ID.
func (m Mode) Group(p string) Group { return Group{m, path.Clean("/" + p)} }

// String returns the group's path.
func (g Group) String() string { return g.path }

// dir is where a controller has the group; "" if it has no controller.
func (g Group) dir(controller string) string {
	mount, ok := g.mode.Mounts[g.mode.name(controller)]
	if !ok {
		return ""
	}
	return path.Join(mount, g.path)
}

// dirs are the group's directories, one in each hierarchy. The v2 one, which
// tells when the last process is gone, is first.
func (g Group) dirs() []string {
	mounts := slices.Compact(slices.Sorted(maps.Values(g.mode.Mounts)))
	dirs := make([]string, 0, len(mounts))
	for _, mount := range mounts {
		d := path.Join(mount, g.path)
		if mount == g.mode.Mounts[""] {
			dirs = slices.Insert(dirs, 0, d)
			continue
		}
		dirs = append(dirs, d)
	}
	return dirs
}

// Exists reports whether any hierarchy has the group.
func (g Group) Exists() bool {
	return slices.ContainsFunc(g.dirs(), func(d string) bool {
		_, err := os.Stat(d)
		return err == nil
	})
}

// own refuses the root: to end or remove it is to end the host.
func (g Group) own(verb string) error {
	if g.path == "/" {
		return fmt.Errorf("%s cgroup /: it is the whole host's: %w", verb, berth.ErrInvalid)
	}
	return nil
}

// Processes returns the pids in the group and in the groups below it, sorted:
// those of every hierarchy, for a process can be in some only.
func (g Group) Processes() ([]int, error) {
	var pids []int
	for _, d := range g.dirs() {
		for _, d := range below(d) {
			b, err := os.ReadFile(path.Join(d, "cgroup.procs"))
			if gone(err) || errors.Is(err, errThreaded) {
				continue // the processes of a threaded group are listed by its parent
			}
			if err != nil {
				return nil, fmt.Errorf("list the processes of cgroup %s: %w", g.path, err)
			}
			for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
				// A process of an outer pid namespace is a 0.
				if pid := int(number(s.Text())); pid > 0 {
					pids = append(pids, pid)
				}
			}
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// below lists a directory and all groups below it, each before its own.
func below(dir string) []string {
	dirs := []string{dir}
	for i := 0; i < len(dirs); i++ {
		entries, _ := os.ReadDir(dirs[i]) // that it has gone is no error
		for _, e := range entries {
			if e.IsDir() {
				dirs = append(dirs, path.Join(dirs[i], e.Name()))
			}
		}
	}
	return dirs
}
