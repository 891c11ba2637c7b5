package cgroup

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// MonitorGroup is where the monitors of containers are: a leaf, for on v2 a
// group whose controllers are handed on to groups below, as /berth, can have no
// processes ("no internal processes", cgroups(7)), and beside /berth, so that a
// limit which an administrator gives to all containers does not end a monitor.
const MonitorGroup = "/berth-monitors"

// Add makes the group where it is not and puts a process into it in every
// hierarchy, so that it outlives the service or session which started it:
// systemd ends what is in their groups, and their limits count it.
func (g Group) Add(pid int) error {
	if err := g.own("use"); err != nil {
		return err
	}
	for _, d := range g.dirs() {
		if err := g.add(d, pid); err != nil {
			return fmt.Errorf("put process %d into cgroup %s: %w", pid, g.path, err)
		}
	}
	return nil
}

func (g Group) add(dir string, pid int) (err error) {
	for range 3 { // another process may prune the group between two lines
		if err = os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if g.mode.Version != V2 && dir == g.dir("cpuset") {
			g.fillCpuset()
		}
		if err = write(dir, "cgroup.procs", fmt.Sprint(pid)); !gone(err) {
			return err
		}
	}
	return err
}

// fillCpuset gives the group what its parent has: a new cpuset of v1 has no
// processors and no memory, and takes no process (ENOSPC).
func (g Group) fillCpuset() {
	dir := g.mode.Mounts["cpuset"]
	for name := range strings.SplitSeq(g.path[1:], "/") {
		parent := dir
		dir = path.Join(dir, name)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if have, ok := read(dir, file); !ok || have != "" {
				continue
			}
			if all, ok := read(parent, file); ok {
				_ = write(dir, file, all) // the write of the pid tells what is wrong
			}
		}
	}
}
