package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
	"berth/internal/image"
)

// A containerDetail is a container, how it is, and how it is connected.
type containerDetail struct {
	berth.Container
	Run berth.Run
	// State is Docker's word: created, running, paused, restarting, exited or
	// dead.
	State     string
	Endpoints []engine.EndpointDetail
	LogPath   string
}

// psFlags are the flags of "ps".
type psFlags struct {
	list
	all, latest bool
	last        int
}

func (p *psFlags) flags(cmd *cobra.Command) {
	p.list.flags(cmd, "ids", containerFilters.keys())
	f := cmd.Flags()
	f.BoolVarP(&p.all, "all", "a", false, "those too that do not run")
	f.BoolVarP(&p.latest, "latest", "l", false, "the one made last")
	f.IntVarP(&p.last, "last", "n", -1, "the `number` made last")
	completeFlag(cmd, "last", cobra.NoFileCompletions)
	refuse(cmd, "ps")
}

// pick returns the containers that are to be shown, the newest first.
func (p *psFlags) pick(all []containerDetail) ([]containerDetail, error) {
	match, err := containerFilters.compile(p.filters)
	if err != nil {
		return nil, err
	}
	most := p.last
	if p.latest {
		most = 1
	}
	// As with Docker, who asks for a state gets those that do not run, too.
	byState := slices.ContainsFunc(p.filters, func(w string) bool { return strings.HasPrefix(w, "status=") })
	whole := p.all || most >= 0 || byState
	var out []containerDetail
	for _, c := range all {
		if match(c) && (whole || c.runs()) {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b containerDetail) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.Name, b.Name))
	})
	if most >= 0 && len(out) > most {
		out = out[:most]
	}
	return out, nil
}

// rows are the containers as they are shown.
func (p *psFlags) rows(all []containerDetail, now time.Time) ([]containerRow, error) {
	picked, err := p.pick(all)
	if err != nil {
		return nil, err
	}
	var out []containerRow
	for _, c := range picked {
		out = append(out, containerAsRow(c, now, p.noTrunc))
	}
	return out, nil
}

// runs reports whether a container has a process.
func (c containerDetail) runs() bool {
	return c.State == "running" || c.State == "paused" || c.State == "restarting"
}

// A containerRow is a container as "docker ps" lists it, in the order of its
// JSON.
type containerRow struct {
	Command, CreatedAt, ID, Image, Labels, LocalVolumes, Mounts, Names, Networks, Ports, RunningFor, State, Status string

	labelled `json:"-"`
}

var containerLayout = layout{
	headings: header{
		"Command": "COMMAND", "CreatedAt": "CREATED AT", "ID": "CONTAINER ID", "Image": "IMAGE", "Labels": "LABELS", "LocalVolumes": "LOCAL VOLUMES",
		"Mounts": "MOUNTS", "Names": "NAMES", "Networks": "NETWORKS", "Ports": "PORTS", "RunningFor": "CREATED", "State": "STATE", "Status": "STATUS",
	},
	shown: []string{"ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"}, quiet: "ID",
}

var containerFilters = filters[containerDetail]{
	"id":     func(c containerDetail, v string) bool { return strings.HasPrefix(c.ID, v) },
	"name":   nameMatches,
	"label":  func(c containerDetail, v string) bool { return hasLabel(c.Labels, v) },
	"status": func(c containerDetail, v string) bool { return c.State == v },
	"exited": func(c containerDetail, v string) bool {
		return c.State == "exited" && strconv.Itoa(c.Last.Code) == v
	},
	"network": func(c containerDetail, v string) bool {
		return slices.Contains(c.networks(), v) || slices.ContainsFunc(c.Endpoints, func(e engine.EndpointDetail) bool {
			return v != "" && strings.HasPrefix(e.Network, v)
		})
	},
	"publish": func(c containerDetail, v string) bool {
		return c.hasPort(v, func(x berth.Port) uint16 { return x.HostPort })
	},
	"ancestor": func(c containerDetail, v string) bool {
		return c.Image != "" && (c.Image == v || image.Same(c.Image, v) || strings.HasPrefix(strings.TrimPrefix(c.ImageID, "sha256:"), strings.TrimPrefix(v, "sha256:")))
	},
	"expose": func(c containerDetail, v string) bool {
		return c.hasPort(v, func(x berth.Port) uint16 { return x.To.Port() })
	},
}

// nameMatches is Docker's rule: the name, or the name with its slash, matches
// a regular expression.
func nameMatches(c containerDetail, v string) bool {
	re, err := regexp.Compile(v)
	return err == nil && (re.MatchString(c.Name) || re.MatchString("/"+c.Name))
}

// hasPort matches a port or a range, with a protocol or without.
func (c containerDetail) hasPort(want string, number func(berth.Port) uint16) bool {
	specs, err := unpublishSpec(want)
	if err != nil || len(specs) != 1 || strings.Contains(want, ":") {
		return false
	}
	s := specs[0]
	return slices.ContainsFunc(c.Endpoints, func(e engine.EndpointDetail) bool {
		return slices.ContainsFunc(e.Ports, func(x berth.Port) bool {
			n := number(x)
			return x.Protocol == s.Protocol && s.HostLow <= n && n <= s.HostHigh
		})
	})
}

// networks are the names of those it is on, or Docker's word for why it is on
// none.
func (c containerDetail) networks() []string {
	if c.Net.Mode != "" {
		kind, _, _ := strings.Cut(c.Net.Mode, ":")
		return []string{kind}
	}
	var out []string
	for _, e := range c.Endpoints {
		out = append(out, e.NetworkName)
	}
	if c.Endpoints == nil { // not started: where it will be
		for _, a := range c.Net.Networks {
			out = append(out, a.Network)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(out)))
}

func containerAsRow(c containerDetail, now time.Time, whole bool) containerRow {
	command := strings.Join(slices.Concat(c.Process.Entrypoint, c.Process.Command), " ")
	var mounts []string
	for _, m := range c.Mounts {
		if m.Type == "bind" {
			mounts = append(mounts, ellipsis(m.Source, 15, whole))
		}
	}
	var ports []berth.Port
	for _, e := range c.Endpoints {
		ports = append(ports, e.Ports...)
	}
	return containerRow{
		Command: strconv.Quote(ellipsis(command, 20, whole)), CreatedAt: c.Created.Format("2006-01-02 15:04:05 -0700 MST"),
		ID: short(c.ID, whole), Image: cmp.Or(c.Image, c.Rootfs), Labels: labelsText(c.Labels), LocalVolumes: "0", Mounts: strings.Join(mounts, ","),
		Names: c.Name, Networks: strings.Join(c.networks(), ","), Ports: portsText(ports), RunningFor: ago(now.Sub(c.Created)) + " ago",
		State: c.State, Status: status(c, now), labelled: c.Labels,
	}
}

// ellipsis shortens text to a number of characters.
func ellipsis(s string, most int, whole bool) string {
	if r := []rune(s); !whole && len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// status is Docker's line about how a container is.
func status(c containerDetail, now time.Time) string {
	switch c.State {
	case "created":
		return "Created"
	case "running":
		return "Up " + ago(now.Sub(c.Run.Started))
	case "paused":
		return "Up " + ago(now.Sub(c.Run.Started)) + " (Paused)"
	case "restarting":
		return fmt.Sprintf("Restarting (%d) %s ago", c.Last.Code, ago(now.Sub(c.Last.Finished)))
	case "dead":
		return "Dead"
	}
	return fmt.Sprintf("Exited (%d) %s ago", c.Last.Code, ago(now.Sub(c.Last.Finished)))
}

// ago is a length of time in Docker's words.
func ago(d time.Duration) string {
	switch seconds, minutes, hours := int(d.Seconds()), int(d.Minutes()), int(d.Hours()+0.5); {
	case seconds < 1:
		return "Less than a second"
	case seconds == 1:
		return "1 second"
	case seconds < 60:
		return fmt.Sprintf("%d seconds", seconds)
	case minutes == 1:
		return "About a minute"
	case minutes < 60:
		return fmt.Sprintf("%d minutes", minutes)
	case hours == 1:
		return "About an hour"
	case hours < 48:
		return fmt.Sprintf("%d hours", hours)
	case hours < 24*7*2:
		return fmt.Sprintf("%d days", hours/24)
	case hours < 24*30*2:
		return fmt.Sprintf("%d weeks", hours/24/7)
	case hours < 24*365*2:
		return fmt.Sprintf("%d months", hours/24/30)
	}
	return fmt.Sprintf("%d years", int(d.Hours())/24/365)
}

// portsText is published ports as "docker ps" lists them: neighbours become a
// range, IPv4 comes first.
func portsText(ports []berth.Port) string {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b berth.Port) int {
		return cmp.Or(strings.Compare(string(a.Protocol), string(b.Protocol)), a.HostIP.Compare(b.HostIP), cmp.Compare(a.To.Port(), b.To.Port()), cmp.Compare(a.HostPort, b.HostPort))
	})
	var out []string
	for i := 0; i < len(ports); {
		a, n := ports[i], 1
		for i+n < len(ports) {
			b := ports[i+n]
			if b.Protocol != a.Protocol || b.HostIP != a.HostIP || int(b.HostPort) != int(a.HostPort)+n || int(b.To.Port()) != int(a.To.Port())+n {
				break
			}
			n++
		}
		host, inside := netip.AddrPortFrom(a.HostIP, a.HostPort).String(), strconv.Itoa(int(a.To.Port()))
		if n > 1 {
			host += "-" + strconv.Itoa(int(a.HostPort)+n-1)
			inside += "-" + strconv.Itoa(int(a.To.Port())+n-1)
		}
		out = append(out, fmt.Sprintf("%s->%s/%s", host, inside, a.Protocol))
		i += n
	}
	return strings.Join(out, ", ")
}
