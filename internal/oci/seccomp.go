package oci

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

// A profile is a seccomp filter in the format of Docker's profile files: that
// of the runtime, with rules that depend on the host and the capabilities.
type profile struct {
	specs.LinuxSeccomp
	ArchMap  []archMap `json:"archMap"`
	Syscalls []rule    `json:"syscalls"`
}

// An archMap says which other architectures the kernel of one runs.
type archMap struct {
	Arch specs.Arch   `json:"architecture"`
	Subs []specs.Arch `json:"subArchitectures"`
}

type rule struct {
	specs.LinuxSyscall
	Name     string    `json:"name"` // of one, instead of Names
	Includes condition `json:"includes"`
	Excludes condition `json:"excludes"`
}

// A condition is about the container and the host. With no field set it is
// none.
type condition struct {
	Caps      []string `json:"caps"`
	Arches    []string `json:"arches"` // as runtime.GOARCH
	MinKernel string   `json:"minKernel"`
}

// scmpArch are the names of libseccomp for those of Go.
var scmpArch = map[string]specs.Arch{
	"386": specs.ArchX86, "amd64": specs.ArchX86_64, "arm": specs.ArchARM, "arm64": specs.ArchAARCH64,
	"ppc64le": specs.ArchPPC64LE, "s390x": specs.ArchS390X, "riscv64": specs.ArchRISCV64,
}

// seccomp is the filter of a container; nil is none. A privileged one has none
// but the one it names.
func seccomp(s berth.Security, h Host, caps []string) (*specs.LinuxSeccomp, error) {
	if s.Seccomp == "unconfined" || s.Privileged && s.Seccomp == "" {
		return nil, nil
	}
	if s.Seccomp != "" {
		p, err := parseProfile(h.Seccomp)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile %s: %w: %w", s.Seccomp, berth.ErrInvalid, err)
		}
		return p.filter(h, caps), nil
	}
	// The arguments of a call are in another order on some others.
	if !slices.ContainsFunc(onArch, func(a archNames) bool { return a.arch == h.Arch }) {
		return nil, fmt.Errorf("default seccomp profile on %q: name one of your own: %w", h.Arch, berth.ErrUnsupported)
	}
	return defaultProfile().filter(h, caps), nil
}

// parseProfile reads a profile file and refuses what a runtime would.
func parseProfile(data []byte) (profile, error) {
	var p profile
	if err := json.Unmarshal(data, &p); err != nil {
		return p, err
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return p, fmt.Errorf("it has both architectures and archMap")
	}
	if err := checkAction(p.DefaultAction); err != nil {
		return p, fmt.Errorf("defaultAction: %w", err)
	}
	for i := range p.Syscalls {
		r := &p.Syscalls[i]
		if r.Name != "" && len(r.Names) > 0 {
			return p, fmt.Errorf("a rule has both name and names: %s", r.Name)
		}
		if r.Name != "" {
			r.Names = []string{r.Name}
		}
		if len(r.Names) == 0 {
			return p, fmt.Errorf("rule %d is about no system call", i+1)
		}
		if err := r.check(); err != nil {
			return p, fmt.Errorf("rule of %s: %w", r.Names[0], err)
		}
	}
	return p, nil
}

func (r rule) check() error {
	if err := checkAction(r.Action); err != nil {
		return err
	}
	for _, a := range r.Args {
		if !slices.Contains([]specs.LinuxSeccompOperator{
			specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
			specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
		}, a.Op) || a.Index > 5 {
			return fmt.Errorf("argument %d, operator %q", a.Index, a.Op)
		}
	}
	for _, c := range []condition{r.Includes, r.Excludes} {
		if _, _, ok := release(c.MinKernel); c.MinKernel != "" && !ok {
			return fmt.Errorf("minKernel %q is not like 4.8", c.MinKernel)
		}
	}
	return nil
}

func checkAction(a specs.LinuxSeccompAction) error {
	if slices.Contains([]specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
		specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify,
	}, a) {
		return nil
	}
	return fmt.Errorf("action %q", a)
}

// filter is what of p holds for a container with caps on h.
func (p profile) filter(h Host, caps []string) *specs.LinuxSeccomp {
	f := p.LinuxSeccomp
	for _, m := range p.ArchMap {
		if m.Arch == scmpArch[h.Arch] {
			f.Architectures = slices.Concat([]specs.Arch{m.Arch}, m.Subs)
		}
	}
	f.Syscalls = nil
	for _, r := range p.Syscalls {
		if r.Includes.all(h, caps) && !r.Excludes.any(h, caps) {
			f.Syscalls = append(f.Syscalls, r.LinuxSyscall)
		}
	}
	return &f
}

// all reports whether every part of c holds: one of the architectures, every
// capability, the kernel.
func (c condition) all(h Host, caps []string) bool {
	if len(c.Arches) > 0 && !slices.Contains(c.Arches, h.Arch) {
		return false
	}
	for _, want := range c.Caps {
		if !slices.Contains(caps, want) {
			return false
		}
	}
	return c.MinKernel == "" || newEnough(h.Kernel, c.MinKernel)
}

// any reports whether one part of c holds.
func (c condition) any(h Host, caps []string) bool {
	return slices.Contains(c.Arches, h.Arch) ||
		slices.ContainsFunc(c.Caps, func(one string) bool { return slices.Contains(caps, one) }) ||
		c.MinKernel != "" && newEnough(h.Kernel, c.MinKernel)
}

func newEnough(kernel, least string) bool {
	major, minor, ok := release(least)
	return ok && atLeast(kernel, major, minor)
}

// atLeast reports whether a kernel's release is not older than major.minor.
func atLeast(kernel string, major, minor int) bool {
	ma, mi, ok := release(kernel)
	return ok && (ma > major || ma == major && mi >= minor)
}

// release reads the two first numbers of a kernel's release: 6.1.0-13-amd64.
func release(s string) (major, minor int, ok bool) {
	first, rest, ok := strings.Cut(s, ".")
	if !ok {
		return 0, 0, false
	}
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		rest = rest[:i]
	}
	major, err := strconv.Atoi(first)
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.Atoi(rest)
	return major, minor, err == nil
}
