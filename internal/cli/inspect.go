package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth"
)

// wholeJSON is a container as "docker inspect" shows it, as far as both have
// the same things.
type wholeJSON struct {
	ID           string `json:"Id"`
	Created      time.Time
	Path         string
	Args         []string
	State        stateOfJSON
	Image        string
	LogPath      string
	Name         string // with a slash in front, as Docker's
	RestartCount int
	Driver       string
	Platform     string
	HostConfig   hostConfigJSON
	Mounts       []mountJSON
	Config       configJSON

	NetworkSettings settingsJSON
}

type stateOfJSON struct {
	Status                                       string
	Running, Paused, Restarting, OOMKilled, Dead bool
	Pid, ExitCode                                int
	Error                                        string
	StartedAt, FinishedAt                        time.Time
}

type configJSON struct {
	Hostname                  string
	User                      string
	AttachStdin               bool
	Tty, OpenStdin, StdinOnce bool
	ExposedPorts              map[string]struct{} `json:",omitempty"`
	Env                       []string
	Cmd                       []string
	Image                     string
	Volumes                   map[string]struct{} `json:",omitempty"`
	WorkingDir                string
	Entrypoint                []string
	Labels                    map[string]string
	StopSignal                string `json:",omitempty"`
	StopTimeout               *int   `json:",omitempty"`
}

type hostConfigJSON struct {
	Binds             []string
	LogConfig         logConfigJSON
	NetworkMode       string
	PortBindings      map[string][]bindingJSON
	RestartPolicy     restartJSON
	AutoRemove        bool
	CapAdd, CapDrop   []string
	DNS               []string `json:"Dns"`
	DNSOptions        []string `json:"DnsOptions"`
	DNSSearch         []string `json:"DnsSearch"`
	ExtraHosts        []string
	GroupAdd          []string
	PidMode           string
	Privileged        bool
	ReadonlyRootfs    bool
	SecurityOpt       []string
	Tmpfs             map[string]string `json:",omitempty"`
	Sysctls           map[string]string `json:",omitempty"`
	ShmSize           int64
	ConsoleSize       [2]uint16 // rows, columns
	CPUShares         int64     `json:"CpuShares"`
	Memory            int64
	NanoCPUs          int64 `json:"NanoCpus"`
	BlkioWeight       uint16
	BlkioReadBps      []rateJSON `json:"BlkioDeviceReadBps"`
	BlkioWriteBps     []rateJSON `json:"BlkioDeviceWriteBps"`
	CPUPeriod         int64      `json:"CpuPeriod"`
	CPUQuota          int64      `json:"CpuQuota"`
	CpusetCpus        string
	CpusetMems        string
	Devices           []deviceJSON
	MemoryReservation int64
	MemorySwap        int64
	PidsLimit         *int64
	Ulimits           []ulimitJSON
	Init              bool
	Expose            []string `json:",omitempty"` // of --rootfs host; Docker has none
}

type (
	logConfigJSON struct {
		Type   string
		Config map[string]string
	}
	restartJSON struct {
		Name              string
		MaximumRetryCount int
	}
	rateJSON struct {
		Path string
		Rate uint64
	}
	deviceJSON struct{ PathOnHost, PathInContainer, CgroupPermissions string }
	ulimitJSON struct {
		Name       string
		Hard, Soft int64
	}
	mountJSON struct {
		Type        string
		Source      string
		Destination string
		Mode        string
		RW          bool
		Propagation string
	}
)

// containerAsJSON shows a container. networks are those it is on, by id.
func containerAsJSON(d containerDetail, networks map[string]berth.Network) wholeJSON {
	words := slices.Concat(d.Process.Entrypoint, d.Process.Command)
	j := wholeJSON{
		ID: d.ID, Created: d.Created, Args: []string{}, State: stateAsJSON(d), Image: cmp.Or(d.ImageID, d.Rootfs), LogPath: d.LogPath, Name: "/" + d.Name,
		RestartCount: d.RestartCount, Driver: rootDriver(d.Container), Platform: "linux", HostConfig: hostConfigAsJSON(d.Container), Mounts: []mountJSON{},
		Config: configAsJSON(d.Container), NetworkSettings: settingsAsJSON(d.Endpoints, networks),
	}
	if len(words) > 0 {
		j.Path, j.Args = words[0], words[1:]
	}
	if d.Run.First.Pid != 0 {
		j.NetworkSettings.SandboxKey = fmt.Sprintf("/proc/%d/ns/net", d.Run.First.Pid)
	}
	for _, m := range d.Mounts {
		j.Mounts = append(j.Mounts, mountAsJSON(m))
	}
	return j
}

// rootDriver is what "/" is made of.
func rootDriver(c berth.Container) string {
	switch {
	case c.Image != "":
		return "overlay2"
	case c.Rootfs == "host":
		return "overlay"
	}
	return "dir"
}

func stateAsJSON(d containerDetail) stateOfJSON {
	s := stateOfJSON{
		Status: d.State, Running: d.runs(), Paused: d.State == "paused", Restarting: d.State == "restarting", OOMKilled: d.Last.OOM,
		Dead: d.State == "dead", Pid: d.Run.First.Pid, ExitCode: d.Last.Code, Error: d.Last.Error, StartedAt: d.Last.Started, FinishedAt: d.Last.Finished,
	}
	if !d.Run.Started.IsZero() {
		s.StartedAt = d.Run.Started
	}
	if d.State == "running" || d.State == "paused" {
		// Of this run nothing is known yet; FinishedAt is of the last one, as
		// with Docker.
		s.OOMKilled, s.ExitCode, s.Error = false, 0, ""
	}
	return s
}

func configAsJSON(c berth.Container) configJSON {
	return configJSON{
		Hostname: c.Hostname, User: c.Process.User, AttachStdin: c.Process.Stdin, Tty: c.Process.Terminal, OpenStdin: c.Process.Stdin, StdinOnce: c.Process.Stdin,
		ExposedPorts: exposedPorts(c.Net), Env: list0(c.Process.Env), Cmd: list0(c.Process.Command), Image: cmp.Or(c.Image, c.Rootfs), Volumes: set(c.Volumes), WorkingDir: cmp.Or(c.Process.Dir, "/"),
		Entrypoint: c.Process.Entrypoint, Labels: notNil(c.Labels), StopSignal: c.StopSignal, StopTimeout: c.StopTimeout,
	}
}

func exposedPorts(n berth.Net) map[string]struct{} {
	out := set(n.Exposed)
	for _, s := range n.Ports {
		out[fmt.Sprintf("%d/%s", s.Port, s.Protocol)] = struct{}{}
	}
	return out
}

func set(words []string) map[string]struct{} {
	out := map[string]struct{}{}
	for _, w := range words {
		out[w] = struct{}{}
	}
	return out
}

func hostConfigAsJSON(c berth.Container) hostConfigJSON {
	l := c.Limits
	h := hostConfigJSON{
		Binds: []string{}, LogConfig: logConfigJSON{"k8s-file", map[string]string{}}, NetworkMode: networkMode(c.Net), PortBindings: map[string][]bindingJSON{},
		RestartPolicy: restartJSON{cmp.Or(c.Restart.Policy, "no"), c.Restart.Retries}, AutoRemove: c.AutoRemove, CapAdd: c.Security.CapAdd, CapDrop: c.Security.CapDrop,
		DNS: []string{}, DNSOptions: list0(c.Net.DNSOptions), DNSSearch: list0(c.Net.DNSSearch), ExtraHosts: c.Net.ExtraHosts, GroupAdd: c.Process.Groups, PidMode: c.PidMode,
		Privileged: c.Security.Privileged, ReadonlyRootfs: c.ReadOnly, SecurityOpt: securityWords(c.Security), Tmpfs: map[string]string{}, Sysctls: c.Sysctls,
		ShmSize: cmp.Or(c.ShmSize, 64<<20), ConsoleSize: [2]uint16{c.Process.Rows, c.Process.Columns}, CPUShares: l.CPUShares, Memory: l.Memory, NanoCPUs: l.NanoCPUs, BlkioWeight: l.BlkioWeight,
		BlkioReadBps: rates(l.DeviceReadBps), BlkioWriteBps: rates(l.DeviceWriteBps), CPUPeriod: l.CPUPeriod, CPUQuota: l.CPUQuota, CpusetCpus: l.CPUs, CpusetMems: l.Mems,
		Devices: []deviceJSON{}, MemoryReservation: l.MemoryReservation, MemorySwap: l.MemorySwap, Ulimits: []ulimitJSON{}, Init: c.Init, Expose: c.Expose,
	}
	if c.LogMaxSize != 0 {
		h.LogConfig.Config["max-size"] = strconv.FormatInt(c.LogMaxSize, 10)
	}
	if h.MemorySwap == 0 {
		h.MemorySwap = 2 * l.Memory
	}
	if l.Pids != 0 {
		h.PidsLimit = &l.Pids
	}
	for _, a := range c.Net.DNS {
		h.DNS = append(h.DNS, a.String())
	}
	for _, m := range c.Mounts {
		if m.Type == "tmpfs" {
			h.Tmpfs[m.Target] = strings.Join(m.Options, ",")
			continue
		}
		h.Binds = append(h.Binds, strings.TrimSuffix(m.Source+":"+m.Target+":"+strings.Join(m.Options, ","), ":"))
	}
	for _, x := range c.Devices {
		h.Devices = append(h.Devices, deviceJSON{x.Source, x.Target, x.Permissions})
	}
	for _, u := range c.Process.Ulimits {
		h.Ulimits = append(h.Ulimits, ulimitJSON{u.Name, u.Hard, u.Soft})
	}
	for _, s := range c.Net.Ports {
		k := fmt.Sprintf("%d/%s", s.Port, s.Protocol)
		h.PortBindings[k] = append(h.PortBindings[k], wantedBinding(s))
	}
	return h
}

// wantedBinding is a port as it was asked for: "" where any will do.
func wantedBinding(s berth.PortSpec) bindingJSON {
	var b bindingJSON
	if s.HostIP.IsValid() {
		b.HostIp = s.HostIP.String()
	}
	if s.HostLow != 0 {
		b.HostPort = strconv.Itoa(int(s.HostLow))
		if s.HostHigh != s.HostLow {
			b.HostPort += "-" + strconv.Itoa(int(s.HostHigh))
		}
	}
	return b
}

func networkMode(n berth.Net) string {
	if n.Mode == "" && len(n.Networks) > 0 {
		return n.Networks[0].Network
	}
	return n.Mode
}

func securityWords(s berth.Security) []string {
	var out []string
	if s.NoNewPrivileges {
		out = append(out, "no-new-privileges")
	}
	if s.Seccomp != "" {
		out = append(out, "seccomp="+s.Seccomp)
	}
	if s.AppArmor != "" {
		out = append(out, "apparmor="+s.AppArmor)
	}
	return out
}

func rates(all []berth.Throttle) []rateJSON {
	out := []rateJSON{}
	for _, t := range all {
		out = append(out, rateJSON{t.Device, t.Rate})
	}
	return out
}

func mountAsJSON(m berth.Mount) mountJSON {
	j := mountJSON{Type: m.Type, Source: m.Source, Destination: m.Target, Mode: strings.Join(m.Options, ","), RW: !slices.Contains(m.Options, "ro")}
	if m.Type == "bind" {
		j.Propagation = "rprivate"
		for _, o := range m.Options {
			if slices.Contains(propagations, o) {
				j.Propagation = o
			}
		}
	}
	return j
}

// list0 is a list that is there though it is empty: clients loop over it.
func list0(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
