package oci

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

const defaultShm = 64 << 20

// mounts are those of every container, except where the user has put something
// else, there or above, then the rest by depth: what is below comes after what it
// is in.
func mounts(c berth.Container, h Host) ([]specs.Mount, error) {
	wanted, err := userMounts(c.Mounts, h)
	if err != nil {
		return nil, err
	}
	if c.ShmSize < 0 {
		return nil, invalid("size of /dev/shm", "%d is negative", c.ShmSize)
	}
	for _, m := range etcMounts(c, h) {
		if _, ok := wanted[m.Destination]; !ok {
			wanted[m.Destination] = m
		}
	}
	if c.Init {
		wanted[initTarget(c)] = bindFile(initTarget(c), h.Init, true)
	}
	var list []specs.Mount
	for _, m := range defaultMounts(c) {
		replaced := false
		for at := m.Destination; at != "/"; at = path.Dir(at) {
			_, ok := wanted[at]
			replaced = replaced || ok
		}
		if !replaced {
			list = append(list, m)
		}
	}
	rest := slices.SortedFunc(maps.Values(wanted), func(a, b specs.Mount) int {
		if d := depth(a.Destination) - depth(b.Destination); d != 0 {
			return d
		}
		return strings.Compare(a.Destination, b.Destination)
	})
	return append(list, rest...), nil
}

func depth(target string) int { return strings.Count(target, "/") }

// defaultMounts are Docker's. Those of kernel state are read-only, unless the
// container is privileged.
func defaultMounts(c berth.Container) []specs.Mount {
	shm := c.ShmSize
	if shm == 0 {
		shm = defaultShm
	}
	sys := []string{"nosuid", "noexec", "nodev"}
	cgroup := slices.Clone(sys)
	if !c.Security.Privileged {
		cgroup = append(cgroup, "ro")
	}
	// A read-only root is asked for to change nothing, whoever it is.
	if !c.Security.Privileged || c.ReadOnly {
		sys = append(sys, "ro")
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		// Group 5 is tty everywhere.
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: sys},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(shm, 10)}},
	}
}

// etcMounts are the files that say who the container is.
func etcMounts(c berth.Container, h Host) (list []specs.Mount) {
	for _, f := range []struct{ target, source string }{
		{"/etc/hosts", h.Hosts}, {"/etc/resolv.conf", h.ResolvConf}, {"/etc/hostname", h.Hostname},
	} {
		if f.source != "" {
			list = append(list, bindFile(f.target, f.source, c.ReadOnly))
		}
	}
	return list
}

func bindFile(target, source string, readOnly bool) specs.Mount {
	access := "rw"
	if readOnly {
		access = "ro"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"bind", access, "rprivate"}}
}

// initTarget is where the process that reaps is seen. /dev is a file system of
// the container's own, so nothing of it is left in the root, unless the user
// has put the host's there.
func initTarget(c berth.Container) string {
	for _, m := range c.Mounts {
		if path.Clean(m.Target) == "/dev" {
			return "/sbin/docker-init"
		}
	}
	return "/dev/init"
}

// userMounts are the user's, by where they are.
func userMounts(list []berth.Mount, h Host) (map[string]specs.Mount, error) {
	all := map[string]specs.Mount{}
	for _, m := range list {
		what := "mount at " + m.Target
		target := path.Clean(m.Target)
		switch {
		case !path.IsAbs(m.Target) || target == "/":
			return nil, invalid(what, "it has to be an absolute path, and not /")
		case strings.ContainsRune(m.Target+m.Source, 0):
			return nil, invalid(what, "there is a zero byte in it")
		}
		if _, ok := all[target]; ok {
			return nil, invalid(what, "there are two")
		}
		s := specs.Mount{Destination: target, Type: m.Type}
		var err error
		switch m.Type {
		case "bind":
			if !path.IsAbs(m.Source) {
				return nil, invalid(what, "the source %q is not an absolute path", m.Source)
			}
			s.Source = path.Clean(m.Source)
			s.Options, err = bindOptions(m.Options, h, h.Files[m.Source])
		case "tmpfs":
			if m.Source != "" {
				return nil, invalid(what, "a tmpfs has no source, and %q was given", m.Source)
			}
			s.Source = "tmpfs"
			s.Options, err = tmpfsOptions(m.Options)
		default:
			return nil, invalid(what, "type %q is not bind or tmpfs", m.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		all[target] = s
	}
	return all, nil
}

// optionGroups are the options of mount(8) that any file system has: of each
// group the last holds.
var optionGroups = []string{
	"ro rw", "exec noexec", "suid nosuid", "dev nodev", "sync async", "dirsync",
	"atime noatime relatime norelatime strictatime nostrictatime", "diratime nodiratime",
}

const (
	bindModes    = "bind rbind"
	propagations = "private rprivate shared rshared slave rslave unbindable runbindable"
)

// merged puts options one after the other; one takes the place of another of
// its group, which group names.
func merged(options []string, group func(string) (string, error)) (list []string, err error) {
	var groups []string
	for _, o := range options {
		g, err := group(o)
		if err != nil {
			return nil, err
		}
		if i := slices.Index(groups, g); i >= 0 {
			list[i] = o
			continue
		}
		groups, list = append(groups, g), append(list, o)
	}
	return list, nil
}

// groupOf is the one of groups that has the option o.
func groupOf(o string, groups ...string) (string, bool) {
	i := slices.IndexFunc(groups, func(g string) bool { return slices.Contains(strings.Fields(g), o) })
	if i < 0 {
		return "", false
	}
	return groups[i], true
}

// bindOptions are those of a bind: all below the source comes along, and what
// is mounted later, on either side, does not show on the other. Read-only means
// all that comes along, as since Docker 25, where the kernel can. Below a file
// there is nothing, and crun 1.8 refuses rro for one (ENOTDIR).
func bindOptions(options []string, h Host, file bool) ([]string, error) {
	list, err := merged(slices.Concat([]string{"rbind", "rw", "rprivate"}, options), func(o string) (string, error) {
		if o == "z" || o == "Z" {
			if h.SELinux {
				return "", fmt.Errorf("option %s: files are not labelled for SELinux here: %w", o, berth.ErrUnsupported)
			}
			return "label", nil // there are no labels
		}
		if g, ok := groupOf(o, slices.Concat(optionGroups, []string{bindModes, propagations})...); ok {
			return g, nil
		}
		return "", invalid("option "+strconv.Quote(o), "it is none of a bind")
	})
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(o string) bool { return o == "z" || o == "Z" })
	if slices.Contains(list, "ro") && slices.Contains(list, "rbind") && !file && atLeast(h.Kernel, 5, 12) {
		list = append(list, "rro") // mount_setattr(2)
	}
	return list, nil
}

// tmpfsOptions are Docker's defaults and the user's.
func tmpfsOptions(options []string) ([]string, error) {
	return merged(slices.Concat([]string{"rw", "noexec", "nosuid", "nodev"}, options), func(o string) (string, error) {
		if g, ok := groupOf(o, optionGroups...); ok {
			return g, nil
		}
		key, value, _ := strings.Cut(o, "=")
		if tmpfsValue(key, value) {
			return key, nil
		}
		return "", invalid("option "+strconv.Quote(o), "it is none of a tmpfs")
	})
}

// tmpfsValue reports whether tmpfs(5) knows the option.
func tmpfsValue(key, value string) bool {
	digits := strings.TrimLeft(value, "0123456789")
	number := len(digits) < len(value)
	switch key {
	case "size":
		return number && (digits == "" || digits == "%" || len(digits) == 1 && strings.Contains("kKmMgGtTpPeE", digits))
	case "nr_inodes", "nr_blocks":
		return number && (digits == "" || len(digits) == 1 && strings.Contains("kKmMgGtTpPeE", digits))
	case "mode":
		_, err := strconv.ParseUint(value, 8, 16)
		return err == nil
	case "uid", "gid":
		_, err := strconv.ParseUint(value, 10, 32)
		return err == nil
	case "mpol":
		return value != "" && !strings.ContainsAny(value, ", \x00")
	}
	return false
}

// rootPropagation is what "/" has to be for a mount to show outside, or to be
// seen from outside, later; "" is the runtime's own choice.
func rootPropagation(list []berth.Mount) (mode string) {
	for _, m := range list {
		for _, o := range m.Options {
			switch {
			case o == "shared" || o == "rshared":
				return "rshared"
			case o == "slave" || o == "rslave":
				mode = "rslave"
			}
		}
	}
	return mode
}

// Docker's, of files that tell about the host or change it.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readOnlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// hidden are the paths that are masked, and those that are read-only. A path
// the user has put something at is as the user wants it.
func hidden(c berth.Container, h Host) (masked, readOnly []string, err error) {
	if c.Security.Privileged {
		return nil, nil, nil
	}
	masked, readOnly = slices.Clone(maskedPaths), slices.Clone(readOnlyPaths)
	for i := range h.CPUs {
		// The temperature tells what the neighbours compute.
		masked = append(masked, fmt.Sprintf("/sys/devices/system/cpu/cpu%d/thermal_throttle", i))
	}
	for _, m := range c.Mounts {
		target := path.Clean(m.Target)
		for _, p := range masked {
			if strings.HasPrefix(target, p+"/") {
				return nil, nil, invalid("mount at "+m.Target, "%s is masked and would hide it: mount at %s", p, p)
			}
		}
		own := func(p string) bool { return p == target }
		masked, readOnly = slices.DeleteFunc(masked, own), slices.DeleteFunc(readOnly, own)
	}
	return masked, readOnly, nil
}
