package container

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/oci"
)

// A Host is what of a host containers run with.
type Host struct {
	Containers int     `json:"containers"`
	Running    int     `json:"running"`
	Runtime    Program `json:"runtime"`
	Monitor    Program `json:"monitor"`
	// CgroupVersion is "v1", "hybrid" or "v2"; "" if there are none.
	CgroupVersion string   `json:"cgroupVersion"`
	Controllers   []string `json:"controllers"`
	// Missing is what containers lack here, and who brings it.
	Missing []Missing `json:"missing"`
}

// A Program is one that containers run with. It is zero if it is not there.
type Program struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Path    string `json:"path"`
}

// String is for people.
func (p Program) String() string {
	if p.Path == "" {
		return "none"
	}
	return fmt.Sprintf("%s %s (%s)", p.Name, p.Version, p.Path)
}

// Missing is something that is not there.
type Missing struct {
	Name  string `json:"name"`
	Costs string `json:"costs"` // what does not work without it, and what brings it
}

// Host tells what containers run with here. What is missing is no error of it.
func (s *Service) Host(ctx context.Context) (h Host, err error) {
	s.tools()
	all, err := s.List(ctx)
	if err != nil {
		return h, err
	}
	for _, d := range all {
		h.Containers++
		if d.State == Running || d.State == Paused {
			h.Running++
		}
	}
	h.CgroupVersion, h.Controllers = string(s.mode.Version), append([]string{}, s.mode.Controllers()...)
	h.Runtime = program(ctx, s.runtime.Name(), s.runtime.Path)
	h.Monitor = program(ctx, "conmon", s.monitor.Path)
	h.Missing = s.missing()
	return h, nil
}

func program(ctx context.Context, name, path string) Program {
	if path == "" {
		return Program{}
	}
	return Program{Name: name, Version: oci.Version(ctx, path), Path: path}
}

// missing lists what is not there, by Debian's packages.
func (s *Service) missing() []Missing {
	out := []Missing{}
	lack := func(there bool, name, costs string) {
		if !there {
			out = append(out, Missing{name, costs})
		}
	}
	suits := "runc"
	if s.mode.Version == cgroup.V2 {
		suits = "crun"
	}
	lack(s.runtime.Path != "", "OCI runtime", "no containers: install the package "+suits)
	lack(s.monitor.Path != "", "conmon", "no containers: install the package conmon")
	lack(s.mode.Version != "", "cgroups", "no containers: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	lack(initProgram() != "", "--init", "it is refused: install the package tini")
	if s.mode.Version == "" {
		return out
	}
	// Each limit is asked for by itself, and the check tells what it wants.
	for _, l := range []berth.Limits{
		{Memory: 64 << 20}, {Memory: 64 << 20, MemorySwap: 64 << 20}, {NanoCPUs: 1e9}, {CPUShares: 1024}, {CPUs: "0"}, {Pids: 100}, {BlkioWeight: 100},
	} {
		if err := cgroup.Check(l, s.mode); err != nil {
			flag, why, _ := strings.Cut(err.Error(), ": ")
			if !slices.ContainsFunc(out, func(m Missing) bool { return m.Name == flag }) {
				lack(false, flag, "it is refused: "+strings.Replace(why, ": "+berth.ErrUnsupported.Error(), "", 1))
			}
		}
	}
	return out
}
