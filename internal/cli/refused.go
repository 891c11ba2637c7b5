package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A verdict is what Berth makes of a flag of Docker's that is not the same
// here: how it differs, or why it is refused.
type verdict struct {
	flag, short      string
	differs, refused string
}

const (
	windows       = "it is about Windows"
	swarm         = "it is about Swarm, and there is one host"
	noTrust       = "no registry is asked for signatures: a digest in the name pins an image"
	onePlatform   = "an image is here for one platform: 'berth pull --platform' brings another in its place"
	linkLocal     = "the kernel gives an interface its link-local address"
	noHealth      = "nothing of Berth runs that could look after a container"
	noCheckpoints = "no checkpoints are made"
	realTime      = "cgroup v2 has no budget of real time"
	noLinks       = "names on a network do it: --network-alias"
	noSizes       = "what a container has written is not counted: 'berth diff' lists it"
	zeroLifts     = "0 takes the limit away; for Docker it changes nothing"
	zeroStopped   = "0 takes it away from a container that does not run; for Docker it changes nothing"
	emptyStopped  = "\"\" takes it away from a container that does not run; for Docker it changes nothing"
	everyNetwork  = "on every network, on bridge too"
)

// verdicts are those of each command of Docker's. What is not here is the same.
var verdicts = map[string][]verdict{
	"run":     ofRun,
	"create":  ofRun,
	"update":  ofUpdate,
	"ps":      {{flag: "filter", short: "f", differs: "keys: id, name, label, status, exited, network, publish, expose, ancestor (without what was built on it)"}, {flag: "size", short: "s", refused: noSizes}},
	"inspect": {{flag: "size", short: "s", refused: noSizes}, {flag: "type", refused: "it shows containers: 'berth network inspect' and 'berth sandbox inspect' show the others"}},
	"logs":    {{flag: "details", refused: "a line has no labels"}},
	"rm":      {{flag: "volumes", short: "v", differs: "there are no anonymous volumes: it has nothing to do"}, {flag: "link", short: "l", refused: noLinks}},
	"start":   {{flag: "checkpoint", refused: noCheckpoints}, {flag: "checkpoint-dir", refused: noCheckpoints}},
	"prune":   {{flag: "filter", differs: "keys: as of ps"}},
	"network create": {
		{flag: "driver", short: "d", differs: "bridge or link"},
		{flag: "opt", short: "o", differs: "only options that are known, in Docker's names or shorter ones"},
		{flag: "attachable", refused: "every network is"},
		{flag: "config-from", refused: swarm}, {flag: "config-only", refused: swarm}, {flag: "ingress", refused: swarm}, {flag: "scope", refused: swarm},
		{flag: "ipam-driver", refused: "Berth hands out addresses itself"}, {flag: "ipam-opt", refused: "Berth hands out addresses itself"},
	},
	"network connect": {
		{flag: "alias", differs: "again for several, without commas"},
		{flag: "driver-opt", refused: "--interface names the interface, and there are no other options"},
		{flag: "link", refused: noLinks}, {flag: "link-local-ip", refused: linkLocal},
	},
	"network inspect": {{flag: "verbose", short: "v", refused: swarm}},
	"network rm":      {{flag: "force", short: "f", differs: "disconnects what is connected; Docker means: no error if there is none"}},
	"pull": {
		{flag: "all-tags", short: "a", refused: "name the tags one by one"},
		{flag: "disable-content-trust", refused: noTrust},
	},
	"images": {
		{flag: "all", short: "a", differs: "the same as without: no image is hidden"}, {flag: "filter", short: "f", differs: "keys: before, dangling, label, reference, since"},
		{flag: "tree", refused: "an image is here for one platform"},
	},
	"rmi":           {{flag: "no-prune", refused: "there are no untagged parents"}, {flag: "platform", refused: onePlatform}},
	"save":          {{flag: "platform", refused: onePlatform}},
	"load":          {{flag: "platform", refused: "of an archive of several platforms this machine's is loaded"}},
	"import":        {{flag: "platform", refused: "it is for this machine"}},
	"history":       {{flag: "platform", refused: onePlatform}},
	"image inspect": {{flag: "platform", refused: onePlatform}},
	"image prune":   {{flag: "filter", refused: "'berth rmi' takes names and ids, 'berth images --filter' finds them"}},
	"network prune": {{flag: "filter", differs: "keys: as of network ls; no until"}},
}

var ofUpdate = []verdict{
	{flag: "blkio-weight", differs: zeroStopped}, {flag: "cpuset-cpus", differs: emptyStopped}, {flag: "cpuset-mems", differs: emptyStopped},
	{flag: "cpu-period", differs: zeroLifts}, {flag: "cpu-quota", differs: zeroLifts},
	{flag: "cpu-shares", short: "c", differs: zeroLifts}, {flag: "cpus", differs: zeroLifts}, {flag: "memory", short: "m", differs: zeroLifts},
	{flag: "memory-reservation", differs: zeroStopped}, {flag: "memory-swap", differs: zeroLifts},
	{flag: "cpu-rt-period", refused: realTime}, {flag: "cpu-rt-runtime", refused: realTime},
}

var ofRun = []verdict{
	{flag: "device", differs: "a node or a directory of them: no pattern and no CDI name"},
	{flag: "cap-drop", differs: "holds with --privileged too, where Docker ignores it"},
	{flag: "expose", differs: "without an image it goes with --publish-all; with --rootfs host a value that begins with / is a path of the host that is seen inside"},
	{flag: "ip", differs: everyNetwork}, {flag: "ip6", differs: everyNetwork}, {flag: "network-alias", differs: everyNetwork},
	{flag: "label-file", differs: "a name alone is a label without a value; Docker leaves it out"},
	{flag: "log-driver", differs: "k8s-file only, which the monitor writes"},
	{flag: "log-opt", differs: "max-size only, 16m unless given; one file is kept"},
	{flag: "mount", differs: "bind (recursive or not) and tmpfs; no volumes"},
	{flag: "network", differs: "also ns:PATH; of driver-opt only com.docker.network.endpoint.ifname; several in one command, and of any kind; rate-in, rate-out and burst beside Docker's keys"},
	{flag: "publish", short: "p", differs: "the short form only; with --network none, host, container: or ns: it is an error, not a warning"},
	{flag: "publish-all", short: "P", differs: "without an image, the ports of --expose, without which it is refused"},
	{flag: "security-opt", differs: "no-new-privileges, seccomp and apparmor"},
	{flag: "volume", short: "v", differs: "a path of the host: no volumes; options ro, rw and the propagation"},

	{flag: "annotation", refused: "nothing reads it: --label is what ps and inspect show"},
	{flag: "attach", short: "a", refused: "run shows output and errors, and -i hands input in: 2>/dev/null leaves one out"},
	{flag: "blkio-weight-device", refused: "one weight counts for all disks: --blkio-weight"},
	{flag: "cgroup-parent", refused: "containers lie under /berth, where Berth finds them"},
	{flag: "cgroupns", refused: "each container has a cgroup namespace of its own"},
	{flag: "cpu-count", refused: windows}, {flag: "cpu-percent", refused: windows}, {flag: "isolation", refused: windows},
	{flag: "io-maxbandwidth", refused: windows}, {flag: "io-maxiops", refused: windows},
	{flag: "cpu-rt-period", refused: realTime}, {flag: "cpu-rt-runtime", refused: realTime},
	{flag: "device-cgroup-rule", refused: "--device names a device, and opens it"},
	{flag: "device-read-iops", refused: "a rate is limited in bytes: --device-read-bps"},
	{flag: "device-write-iops", refused: "a rate is limited in bytes: --device-write-bps"},
	{flag: "disable-content-trust", refused: noTrust},
	{flag: "domainname", refused: "give the whole name: --hostname NAME.DOMAIN"},
	{flag: "gpus", refused: "no driver is handed in: --device names nodes one by one"},
	{flag: "health-cmd", refused: noHealth}, {flag: "health-interval", refused: noHealth}, {flag: "health-retries", refused: noHealth},
	{flag: "health-start-interval", refused: noHealth}, {flag: "health-start-period", refused: noHealth}, {flag: "health-timeout", refused: noHealth},
	{flag: "no-healthcheck", refused: "there are no health checks"},
	{flag: "ipc", refused: "each container has System V memory and queues of its own"},
	{flag: "kernel-memory", refused: "the kernel no longer counts it by itself: --memory"},
	{flag: "link", refused: noLinks}, {flag: "link-local-ip", refused: linkLocal},
	{flag: "memory-swappiness", refused: "cgroup v2 has none for a group: --memory-swap"},
	{flag: "oom-kill-disable", refused: "without memory it would hang, and cgroup v2 has it not"},
	{flag: "oom-score-adj", refused: "--memory says when it ends for want of memory, and nothing of the host ends with it"},
	{flag: "runtime", refused: "the host has one for all: 'berth info' names it"},
	{flag: "storage-opt", refused: "what a container writes lies on the file system of /var/lib/berth: --rootfs DIR on one of a size of its own bounds it"},
	{flag: "use-api-socket", refused: "there is no Docker to talk to"},
	{flag: "userns", refused: "no user namespace is made"},
	{flag: "uts", refused: "each container has a host name of its own"},
	{flag: "volume-driver", refused: noVolumes}, {flag: "volumes-from", refused: noVolumes},
}

// A refusedFlag is known by name, and an error as soon as it is typed.
type refusedFlag struct{ verdict }

// errRefused is the error of a flag that is refused.
type errRefused struct{ flag, why string }

func (e *errRefused) Error() string { return fmt.Sprintf("--%s is refused: %s", e.flag, e.why) }

// String implements pflag.Value.
func (refusedFlag) String() string { return "" }

// Type implements pflag.Value.
func (refusedFlag) Type() string { return "" }

// Set implements pflag.Value.
func (r refusedFlag) Set(string) error { return &errRefused{r.flag, r.refused} }

// refuse adds the flags of one of Docker's commands that are refused. They are
// not shown in the help.
func refuse(cmd *cobra.Command, docker string) {
	for _, v := range verdicts[docker] {
		if v.refused == "" {
			continue
		}
		// Refused with a value behind it or without.
		cmd.Flags().AddFlag(&pflag.Flag{Name: v.flag, Shorthand: v.short, Value: refusedFlag{v}, Hidden: true, NoOptDefVal: " "})
	}
}

// flagError says what is wrong with a flag; the parser's own words about one
// that is refused say nothing more.
func flagError(err error) error {
	if r := (*errRefused)(nil); errors.As(err, &r) {
		return r
	}
	return err
}
