package berth

import (
	"net/netip"
	"time"
)

// A Container is a process that runs under an OCI runtime, in a sandbox and a
// cgroup of its own, as its user wants it. What is of it in the kernel is a
// [Run].
type Container struct {
	ID      string    `json:"id"` // 64 hex digits
	Name    string    `json:"name"`
	Created time.Time `json:"created"`

	// Image is the name of the image whose files it sees, copy-on-write, as its
	// user gave it, and ImageID the digest of that image's configuration.
	Image   string `json:"image,omitempty"`
	ImageID string `json:"imageID,omitempty"`
	// Rootfs, of a container without an image, is the directory that is its "/",
	// or "host": this host's own programs, copy-on-write.
	Rootfs string `json:"rootfs,omitempty"`
	// Expose are paths of the host that a container of Rootfs "host" sees too.
	Expose   []string `json:"expose,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"` // of "/"

	Process  Process           `json:"process"`
	Mounts   []Mount           `json:"mounts,omitempty"`
	Volumes  []string          `json:"volumes,omitempty"` // directories of the image that stay writable when "/" is not
	Devices  []Device          `json:"devices,omitempty"`
	Sysctls  map[string]string `json:"sysctls,omitempty"`
	ShmSize  int64             `json:"shmSize,omitempty"` // bytes; 0: 64 MiB
	Limits   Limits            `json:"limits"`
	Security Security          `json:"security"`
	PidMode  string            `json:"pidMode,omitempty"` // "", "host" or "container:ID"
	Init     bool              `json:"init,omitempty"`    // a process that reaps is pid 1

	Hostname string `json:"hostname"`
	Net      Net    `json:"net"`

	StopSignal  string            `json:"stopSignal,omitempty"`  // "": SIGTERM
	StopTimeout *int              `json:"stopTimeout,omitempty"` // seconds; nil: 10
	Restart     Restart           `json:"restart"`
	AutoRemove  bool              `json:"autoRemove,omitempty"`
	LogMaxSize  int64             `json:"logMaxSize,omitempty"` // bytes; 0: 16 MiB
	Labels      map[string]string `json:"labels,omitempty"`

	// Last is how it ended when it last ran.
	Last Exit `json:"last"`
	// Wanted reports whether it should run: it was started, and neither stopped
	// by its user nor has it ended for good.
	Wanted       bool `json:"wanted,omitempty"`
	RestartCount int  `json:"restartCount,omitempty"`
	// Again is who ends it to start it again at once.
	Again Running `json:"again,omitzero"`
	// Delay is how long after Last it is started again.
	Delay time.Duration `json:"delay,omitempty"`
}

// A Process is what a container runs.
type Process struct {
	// Entrypoint and Command are joined; the first word is the program.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Command    []string `json:"command,omitempty"`
	Env        []string `json:"env,omitempty"`  // NAME=value
	Dir        string   `json:"dir,omitempty"`  // "": "/"
	User       string   `json:"user,omitempty"` // NAME|UID[:NAME|GID]; "": 0:0
	Groups     []string `json:"groups,omitempty"`
	Terminal   bool     `json:"terminal,omitempty"`
	// Rows and Columns are the size of the terminal when it starts; 0: unknown.
	Rows    uint16   `json:"rows,omitempty"`
	Columns uint16   `json:"columns,omitempty"`
	Stdin   bool     `json:"stdin,omitempty"` // stays open when nobody is attached
	Ulimits []Ulimit `json:"ulimits,omitempty"`
}

// A Ulimit bounds a resource of each process, as setrlimit(2) does.
type Ulimit struct {
	Name string `json:"name"` // nofile, nproc, …
	Soft int64  `json:"soft"` // -1: none
	Hard int64  `json:"hard"`
}

// A Mount is something that is at a path of a container.
type Mount struct {
	Type   string `json:"type"`             // "bind" or "tmpfs"
	Source string `json:"source,omitempty"` // of a bind, on the host
	Target string `json:"target"`
	// Make makes a directory of a source that is not there.
	Make bool `json:"make,omitempty"`
	// Options are those of mount(8): ro, rw, noexec, rshared, size=64m, ….
	Options []string `json:"options,omitempty"`
}

// A Device is a device node of the host.
type Device struct {
	Source      string `json:"source"`
	Target      string `json:"target"`
	Permissions string `json:"permissions"` // of r, w and m
}

// Limits bound what all processes of a container use together. Zero is no
// limit.
type Limits struct {
	Memory            int64  `json:"memory,omitempty"`            // bytes
	MemorySwap        int64  `json:"memorySwap,omitempty"`        // bytes, memory included; -1: as much swap as there is; 0: twice Memory
	MemoryReservation int64  `json:"memoryReservation,omitempty"` // bytes
	NanoCPUs          int64  `json:"nanoCPUs,omitempty"`          // 1e9 is one processor
	CPUShares         int64  `json:"cpuShares,omitempty"`         // 2 to 262144; 1024 is usual
	CPUPeriod         int64  `json:"cpuPeriod,omitempty"`         // µs
	CPUQuota          int64  `json:"cpuQuota,omitempty"`          // µs in a period
	CPUs              string `json:"cpus,omitempty"`              // which processors: 0-2,4
	Mems              string `json:"mems,omitempty"`              // which memory nodes
	Pids              int64  `json:"pids,omitempty"`

	BlkioWeight    uint16     `json:"blkioWeight,omitempty"` // 10 to 1000
	DeviceReadBps  []Throttle `json:"deviceReadBps,omitempty"`
	DeviceWriteBps []Throttle `json:"deviceWriteBps,omitempty"`
}

// A Throttle bounds the rate of one block device.
type Throttle struct {
	Device string `json:"device"` // a path
	Rate   uint64 `json:"rate"`   // bytes a second
}

// Security is what a container may do to its kernel.
type Security struct {
	Privileged      bool     `json:"privileged,omitempty"`
	CapAdd          []string `json:"capAdd,omitempty"` // NET_ADMIN, or ALL
	CapDrop         []string `json:"capDrop,omitempty"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	Seccomp         string   `json:"seccomp,omitempty"` // "": Berth's own profile; "unconfined", or a file
	AppArmor        string   `json:"appArmor,omitempty"`
}

// A Net is how a container is connected.
type Net struct {
	// Mode is "" for the networks below, "none", "host", "container:ID" or
	// "ns:PATH".
	Mode     string       `json:"mode,omitempty"`
	Networks []Attachment `json:"networks,omitempty"`
	Ports    []PortSpec   `json:"ports,omitempty"`
	// Exposed are the ports that it says it listens on: 80/tcp.
	Exposed []string `json:"exposed,omitempty"`

	DNS        []netip.Addr `json:"dns,omitempty"`
	DNSSearch  []string     `json:"dnsSearch,omitempty"`
	DNSOptions []string     `json:"dnsOptions,omitempty"`
	ExtraHosts []string     `json:"extraHosts,omitempty"` // NAME:ADDRESS, or NAME:host-gateway
}

// An Attachment is a network that a container wants to be connected to.
type Attachment struct {
	Network    string     `json:"network"` // name or id
	IP4        netip.Addr `json:"ip4,omitzero"`
	IP6        netip.Addr `json:"ip6,omitzero"`
	MAC        MAC        `json:"mac,omitzero"`
	Interface  string     `json:"interface,omitempty"`
	Aliases    []string   `json:"aliases,omitempty"`
	GwPriority int        `json:"gwPriority,omitempty"`
	// Had are the addresses it had when it was connected last. It gets them
	// again if they are free.
	Had   []netip.Addr `json:"had,omitempty"`
	Rates Rates        `json:"rates,omitzero"`
}

// A Restart says when a container that has ended is started again.
type Restart struct {
	Policy  string `json:"policy,omitempty"`  // "", "no", "on-failure", "always", "unless-stopped"
	Retries int    `json:"retries,omitempty"` // of on-failure; 0: any number
}

// An Exit is the end of a run. Its zero value is that there was none.
type Exit struct {
	Code     int       `json:"code"`
	OOM      bool      `json:"oom,omitempty"`   // the kernel ended it for want of memory
	Error    string    `json:"error,omitempty"` // why it could not start
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// A Run is a container in the kernel: from the moment it is prepared until all
// of it is gone. It is forgotten at a reboot, as the kernel forgets it.
type Run struct {
	Container string    `json:"container"`
	Started   time.Time `json:"started,omitzero"`  // zero: it is being prepared
	Sandbox   string    `json:"sandbox,omitempty"` // the name of the sandbox that was made for it
	First     Running   `json:"first"`             // the container's first process
	Monitor   Running   `json:"monitor"`           // conmon
	Paused    bool      `json:"paused,omitempty"`
	// Limits are those it has.
	Limits Limits `json:"limits"`
}

// A Running is a process, told from a later one of the same pid by its start.
type Running struct {
	Pid   int    `json:"pid,omitempty"`
	Since uint64 `json:"since,omitempty"` // field 22 of /proc/PID/stat (proc(5)), in ticks since the boot
}
