package oci

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

// allCaps are those of Linux 5.9 and later, in the kernel's order.
var allCaps = prefixed(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
	SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
	AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON
	BPF CHECKPOINT_RESTORE`)

// defaultCaps are Docker's.
var defaultCaps = prefixed(`CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW
	SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP`)

func prefixed(names string) []string {
	list := strings.Fields(names)
	for i := range list {
		list[i] = "CAP_" + list[i]
	}
	return list
}

// capabilities are those a container has, in the kernel's order. What is
// dropped by name is gone, also from all of a privileged one (where Docker
// ignores it); what is added by name stays when all are dropped. What the host
// cannot give is left out, unless it is asked for by name.
func capabilities(s berth.Security, h Host) ([]string, error) {
	add, addAll, err := capNames("added", s.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames("dropped", s.CapDrop)
	if err != nil {
		return nil, err
	}
	caps := []string{}
	for i, c := range allCaps {
		named, gone := slices.Contains(add, c), slices.Contains(drop, c)
		given := h.Caps == 0 || h.Caps&(1<<i) != 0
		var usual bool
		switch {
		case addAll || s.Privileged && !dropAll:
			usual = !gone
		case !dropAll:
			usual = !gone && slices.Contains(defaultCaps, c)
		}
		if named && !given {
			return nil, fmt.Errorf("capability %s: this host has not got it itself: %w", c, berth.ErrUnsupported)
		}
		if given && (named || usual) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

// capNames are capabilities as the kernel names them; all reports whether ALL
// is among them.
func capNames(verb string, names []string) (caps []string, all bool, err error) {
	for _, name := range names {
		full := strings.ToUpper(name)
		if full == "ALL" || full == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if !slices.Contains(allCaps, full) {
			return nil, false, invalid("capability "+name, "it cannot be %s: there is none of this name", verb)
		}
		caps = append(caps, full)
	}
	return caps, all, nil
}

// sets are the capability sets of the first process. One that is not root's has
// none to begin with, as after execve(2). None is inheritable: a file with
// inheritable capabilities would give them to any user (CVE-2022-24769).
func sets(caps []string, uid uint32) *specs.LinuxCapabilities {
	if uid != 0 {
		return &specs.LinuxCapabilities{Bounding: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}
