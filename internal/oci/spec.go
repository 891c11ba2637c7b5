package oci

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

// version is the newest of the specification that the runtimes of Debian 12
// read: crun 1.8 refuses all but 1.0. They know what is said beyond it.
const version = "1.0.2"

// defaultPath is Docker's PATH of a container that has none of its own.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Spec is the configuration with which an OCI runtime runs c on h. Errors match
// [berth.ErrInvalid] if c cannot be right anywhere, and [berth.ErrUnsupported]
// if this host lacks what it needs.
func Spec(c berth.Container, h Host) (*specs.Spec, error) {
	if err := checkHost(c, h); err != nil {
		return nil, err
	}
	caps, err := capabilities(c.Security, h)
	if err != nil {
		return nil, err
	}
	process, err := process(c, h, caps)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(c, h)
	if err != nil {
		return nil, err
	}
	linux, err := linux(c, h, caps)
	if err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version:  version,
		Process:  process,
		Root:     &specs.Root{Path: h.Rootfs, Readonly: c.ReadOnly},
		Hostname: c.Hostname,
		Mounts:   mounts,
		Linux:    linux,
	}, nil
}

// checkHost looks at what was prepared. A namespace that is missing is never
// replaced by the host's own.
func checkHost(c berth.Container, h Host) error {
	if !path.IsAbs(h.Rootfs) {
		return invalid("root", "%q is not an absolute path", h.Rootfs)
	}
	if !path.IsAbs(h.Cgroup) {
		return invalid("cgroup", "%q is not an absolute path", h.Cgroup)
	}
	// The kernel's bound: __NEW_UTS_LEN.
	if len(c.Hostname) > 64 || strings.ContainsAny(c.Hostname, "\x00/ \n") {
		return invalid("hostname", "%q is not a name of at most 64 characters", c.Hostname)
	}
	switch mode := c.Net.Mode; {
	case mode == "host" && h.NetNS != "":
		return invalid("network mode", "host has no namespace of its own, and %s was given", h.NetNS)
	case (strings.HasPrefix(mode, "container:") || strings.HasPrefix(mode, "ns:")) && h.NetNS == "":
		return invalid("network mode", "%s, and no namespace was given", mode)
	}
	switch joins := strings.HasPrefix(c.PidMode, "container:"); {
	case c.PidMode != "" && c.PidMode != "host" && !joins:
		return invalid("pid mode", "%q is not host or container:ID", c.PidMode)
	case joins != (h.PidNS != ""):
		return invalid("pid mode", "%q does not go with the namespace %q", c.PidMode, h.PidNS)
	case c.PidMode != "" && c.Init:
		return invalid("init", "with pid mode %s it would not be process 1", c.PidMode)
	}
	if c.Init && h.Init == "" {
		return invalid("init", "this host has no such program: install tini")
	}
	return nil
}

func process(c berth.Container, h Host, caps []string) (*specs.Process, error) {
	args := slices.Concat(c.Process.Entrypoint, c.Process.Command)
	if len(args) == 0 || args[0] == "" {
		return nil, invalid("command", "there is none")
	}
	if c.Init {
		args = slices.Concat([]string{initTarget(c), "--"}, args)
	}
	for _, arg := range args {
		if strings.ContainsRune(arg, 0) {
			return nil, invalid("command", "%q has a zero byte", arg)
		}
	}
	env, err := environment(c, h)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(c.Process.Ulimits)
	if err != nil {
		return nil, err
	}
	dir := c.Process.Dir
	if dir == "" {
		dir = "/"
	}
	if !path.IsAbs(dir) {
		return nil, invalid("working directory", "%q is not an absolute path", dir)
	}
	profile, err := appArmor(c.Security, h)
	if err != nil {
		return nil, err
	}
	// Said, because it would be the caller's otherwise: a service manager may
	// have made itself hard to kill.
	adjust := 0
	var size *specs.Box
	if c.Process.Terminal && c.Process.Rows != 0 && c.Process.Columns != 0 {
		size = &specs.Box{Height: uint(c.Process.Rows), Width: uint(c.Process.Columns)}
	}
	return &specs.Process{
		Terminal:        c.Process.Terminal,
		ConsoleSize:     size,
		User:            specUser(h.User),
		Args:            args,
		Env:             env,
		Cwd:             path.Clean(dir),
		Capabilities:    sets(caps, h.User.UID),
		Rlimits:         limits,
		NoNewPrivileges: c.Security.NoNewPrivileges,
		ApparmorProfile: profile,
		OOMScoreAdj:     &adjust,
	}, nil
}

// specUser has the first group among the others too: without it a program could
// drop the group with setgid(2) and pass a file that refuses the group and
// admits everyone else (CVE-2022-36109).
func specUser(u User) specs.User {
	groups := []uint32{u.GID}
	for _, g := range u.Groups {
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	return specs.User{UID: u.UID, GID: u.GID, AdditionalGids: groups}
}

// As makes p, a process of a container, another user's: one that is not root's
// has no capabilities to begin with, whoever the container's first process is.
func As(p *specs.Process, u User) {
	p.User = specUser(u)
	if p.Capabilities != nil {
		p.Capabilities = sets(p.Capabilities.Bounding, u.UID)
	}
	home := cmp.Or(u.Home, "/")
	for i, e := range p.Env {
		if strings.HasPrefix(e, "HOME=") {
			p.Env = slices.Clone(p.Env)
			p.Env[i] = "HOME=" + home
		}
	}
}

// Privileged gives p, a process of a container, all capabilities that this host
// has: given is what [Capabilities] tells. The container's filter of system
// calls stays.
func Privileged(p *specs.Process, given uint64) error {
	caps, err := capabilities(berth.Security{Privileged: true}, Host{Caps: given})
	if err != nil {
		return err
	}
	p.Capabilities = sets(caps, p.User.UID)
	if p.ApparmorProfile != "" {
		p.ApparmorProfile = "unconfined"
	}
	return nil
}

// environment has Docker's defaults, then the user's. A name without a value
// takes the variable away.
func environment(c berth.Container, h Host) ([]string, error) {
	env := []string{"PATH=" + cmp.Or(h.Path, defaultPath), "HOSTNAME=" + c.Hostname, "HOME=" + cmp.Or(h.User.Home, "/")}
	if c.Process.Terminal {
		env = append(env, "TERM=xterm")
	}
	for _, e := range c.Process.Env {
		name, _, set := strings.Cut(e, "=")
		if name == "" || strings.ContainsRune(e, 0) {
			return nil, invalid("variable", "%q is not NAME=VALUE", e)
		}
		same := func(old string) bool { return strings.HasPrefix(old, name+"=") }
		switch i := slices.IndexFunc(env, same); {
		case !set:
			env = slices.DeleteFunc(env, same)
		case i >= 0:
			env[i] = e
		default:
			env = append(env, e)
		}
	}
	return env, nil
}

// rlimitNames are the resources of setrlimit(2).
var rlimitNames = strings.Fields("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")

// rlimits are the ulimits; of several for one resource the last holds.
func rlimits(ulimits []berth.Ulimit) (list []specs.POSIXRlimit, err error) {
	for _, u := range ulimits {
		if !slices.Contains(rlimitNames, u.Name) {
			return nil, invalid("ulimit", "%q is none of %s", u.Name, strings.Join(rlimitNames, ", "))
		}
		if u.Soft < -1 || u.Hard < -1 {
			return nil, invalid("ulimit "+u.Name, "%d:%d is less than -1, which is none", u.Soft, u.Hard)
		}
		l := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: rlimit(u.Soft), Hard: rlimit(u.Hard)}
		if l.Soft > l.Hard {
			return nil, invalid("ulimit "+u.Name, "soft %d is more than hard %d", u.Soft, u.Hard)
		}
		list = slices.DeleteFunc(list, func(old specs.POSIXRlimit) bool { return old.Type == l.Type })
		list = append(list, l)
	}
	return list, nil
}

func rlimit(n int64) uint64 {
	if n == -1 {
		return math.MaxUint64
	}
	return uint64(n)
}

func appArmor(s berth.Security, h Host) (string, error) {
	switch {
	case h.AppArmor:
		return s.AppArmor, nil
	case s.AppArmor == "" || s.AppArmor == "unconfined":
		return "", nil
	}
	return "", fmt.Errorf("profile %s: AppArmor is not enabled: %w", s.AppArmor, berth.ErrUnsupported)
}

func linux(c berth.Container, h Host, caps []string) (*specs.Linux, error) {
	sysctls, err := sysctls(c)
	if err != nil {
		return nil, err
	}
	resources, err := resources(c, h)
	if err != nil {
		return nil, err
	}
	devices, allowed, err := devices(c, h)
	if err != nil {
		return nil, err
	}
	resources.Devices = allowed
	filter, err := seccomp(c.Security, h, caps)
	if err != nil {
		return nil, err
	}
	masked, readOnly, err := hidden(c, h)
	if err != nil {
		return nil, err
	}
	return &specs.Linux{
		Sysctl:            sysctls,
		Resources:         resources,
		CgroupsPath:       h.Cgroup,
		Namespaces:        namespaces(c, h),
		Devices:           devices,
		Seccomp:           filter,
		RootfsPropagation: rootPropagation(c.Mounts),
		MaskedPaths:       masked,
		ReadonlyPaths:     readOnly,
	}, nil
}

// namespaces are those that the container does not share with the host. The
// cgroup namespace is its own on the older hierarchies too, where Docker shares
// the host's: the paths of the host are nobody's business.
func namespaces(c berth.Container, h Host) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.CgroupNamespace},
	}
	if c.PidMode != "host" {
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: h.PidNS})
	}
	if c.Net.Mode != "host" {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: h.NetNS})
	}
	return list
}

// ipcSysctls belong to the IPC namespace, which is always the container's own.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
	"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// sysctls are Docker's defaults and the user's. Only those of a namespace of
// the container may be set: any other would be the host's.
func sysctls(c berth.Container) (map[string]string, error) {
	all := map[string]string{}
	if own := c.Net.Mode == "" || c.Net.Mode == "none"; own {
		// Any user may ping and listen on any port, since the addresses are the
		// container's own (Docker 20.10).
		all["net.ipv4.ping_group_range"] = "0 2147483647"
		all["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sysctls)) {
		what := "sysctl " + name
		switch {
		// The runtime turns dots into slashes to find the file.
		case strings.Contains(name, "/") || slices.Contains(strings.Split(name, "."), ""):
			return nil, invalid(what, "it is not a name like net.core.somaxconn")
		case strings.HasPrefix(name, "net."):
			if c.Net.Mode == "host" {
				return nil, invalid(what, "the network is the host's own")
			}
		case strings.HasPrefix(name, "fs.mqueue."), slices.Contains(ipcSysctls, name):
		default:
			return nil, invalid(what, "it is no setting of a namespace, so it would change the host")
		}
		all[name] = c.Sysctls[name]
	}
	return all, nil
}

// invalid is the error of a wish that cannot be right: what it is about, and
// why.
func invalid(what, why string, args ...any) error {
	return fmt.Errorf("%s: %w: %s", what, berth.ErrInvalid, fmt.Sprintf(why, args...))
}
