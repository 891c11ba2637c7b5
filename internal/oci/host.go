package oci

import "io/fs"

// A Host is what [Spec] has to know of the host, and what was prepared on it
// for one container.
type Host struct {
	Arch   string // of the kernel, as runtime.GOARCH
	Kernel string // release, as uname -r; "": an old one
	CPUs   int    // how many; 0: not known
	Caps   uint64 // what [Capabilities] tells; 0: all

	Rootfs string // the directory that becomes "/"
	Cgroup string // path below the root of each hierarchy: /berth/ID

	// NetNS is the network namespace to join. "" is a new one, and the host's
	// own with the network mode host.
	NetNS string
	// PidNS is the namespace to join with the pid mode container:ID.
	PidNS string

	// Files of the host that the container sees in /etc; "": the root's own.
	Hosts, ResolvConf, Hostname string

	User User
	// Files are the sources of binds that are no directories ([Sources]).
	Files map[string]bool
	// Devices are the nodes of the wish, by their path on the host: devices,
	// throttled disks, and with Privileged all of the host ([Devices] of /dev).
	Devices map[string]Node

	Path    string // PATH by default; "": Docker's
	Init    string // a program that reaps, on the host; "": there is none
	Seccomp []byte // content of the profile file; not looked at without one

	AppArmor  bool // the kernel enforces AppArmor profiles
	SELinux   bool // the kernel labels files
	SwapLimit bool // memory and swap can be bounded together
}

// A User is who a process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // others than GID
	Home     string   // "": /
}

// A Node is a device node.
type Node struct {
	Type         string // "c" or "b"
	Major, Minor int64
	Mode         fs.FileMode // permissions
	UID, GID     uint32
}
