package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"berth"
	"berth/engine"
)

// networkJSON is a network as "docker network inspect" shows it, and what
// Berth knows beside it.
type networkJSON struct {
	Name       string
	ID         string `json:"Id"`
	Created    time.Time
	Scope      string
	Driver     string
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       ipamJSON
	Internal   bool
	Attachable bool
	Ingress    bool
	Containers map[string]containerJSON
	Options    map[string]string
	Labels     map[string]string

	Bridge    string `json:",omitempty"`
	MTU       int
	Endpoints []endpointJSON
	Refused   []refusalJSON
}

type ipamJSON struct {
	Driver  string
	Options map[string]string
	Config  []subnetJSON
}

type subnetJSON struct {
	Subnet             string
	IPRange            string            `json:",omitempty"`
	Gateway            string            `json:",omitempty"`
	AuxiliaryAddresses map[string]string `json:",omitempty"`
}

type containerJSON struct {
	Name, EndpointID, MacAddress, IPv4Address, IPv6Address string
}

type endpointJSON struct {
	ID, Sandbox, Interface, MacAddress string
	Addresses                          []string
	Aliases                            []string `json:",omitempty"`
	Ports                              []string `json:",omitempty"`
	Found                              bool     `json:",omitempty"`
	ratesJSON
}

type refusalJSON struct {
	Reason         string
	Packets, Bytes uint64
}

// networkAsJSON shows a network; container is the id of the container of a
// sandbox, which is what it is known by then.
func networkAsJSON(d engine.NetworkDetail, container map[string]string) networkJSON {
	j := networkJSON{
		Name: d.Name, ID: d.ID, Created: d.Created, Scope: "local", Driver: string(d.Driver), EnableIPv4: d.Has4(), EnableIPv6: d.Has6(),
		IPAM: ipamJSON{Driver: "default", Options: map[string]string{}, Config: []subnetJSON{}}, Internal: d.Internal,
		Containers: map[string]containerJSON{}, Options: notNil(d.Options), Labels: notNil(d.Labels), Bridge: d.Bridge, MTU: d.MTU,
		Endpoints: []endpointJSON{}, Refused: []refusalJSON{},
	}
	for _, s := range d.Subnets {
		c := subnetJSON{Subnet: s.Prefix.String()}
		if s.Gateway.IsValid() {
			c.Gateway = s.Gateway.String()
		}
		if s.Range.IsValid() {
			c.IPRange = s.Range.String()
		}
		for name, a := range s.Aux {
			if c.AuxiliaryAddresses == nil {
				c.AuxiliaryAddresses = map[string]string{}
			}
			c.AuxiliaryAddresses[name] = a.String()
		}
		j.IPAM.Config = append(j.IPAM.Config, c)
	}
	for _, e := range d.Endpoints {
		j.Containers[cmp.Or(container[e.Sandbox], e.Sandbox)] = containerJSON{e.SandboxName, e.ID, e.MAC.String(), first(e.Addrs, true), first(e.Addrs, false)}
		ej := endpointJSON{ID: e.ID, Sandbox: e.SandboxName, Interface: e.Interface, MacAddress: e.MAC.String(), Aliases: e.Aliases, Found: e.Found, ratesJSON: ratesAsJSON(e.Rates)}
		for _, a := range e.Addrs {
			ej.Addresses = append(ej.Addresses, a.String())
		}
		for _, p := range e.Ports {
			ej.Ports = append(ej.Ports, portLine(p))
		}
		j.Endpoints = append(j.Endpoints, ej)
	}
	for _, r := range d.Refused {
		j.Refused = append(j.Refused, refusalJSON(r))
	}
	return j
}

func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func first(addrs []netip.Prefix, v4 bool) string {
	for _, a := range addrs {
		if a.Addr().Is4() == v4 {
			return a.String()
		}
	}
	return ""
}

// sandboxJSON is a sandbox in the shape of "docker inspect", as far as it has
// the same things.
type sandboxJSON struct {
	ID              string `json:"Id"`
	Name            string
	Created         time.Time
	State           stateJSON
	Path            string
	Owned           bool
	Labels          map[string]string
	NetworkSettings settingsJSON
}

type stateJSON struct{ Status string }

type settingsJSON struct {
	SandboxKey string
	Ports      map[string][]bindingJSON
	Networks   map[string]attachedJSON
}

type bindingJSON struct{ HostIp, HostPort string } // Docker's spelling

type attachedJSON struct {
	NetworkID, EndpointID, Interface, MacAddress string
	IPAddress                                    string
	IPPrefixLen                                  int
	Gateway                                      string
	GlobalIPv6Address                            string
	GlobalIPv6PrefixLen                          int
	IPv6Gateway                                  string
	Aliases                                      []string
	GwPriority                                   int
	ratesJSON
	Labels map[string]string `json:",omitempty"` // of the endpoint
}

func sandboxAsJSON(d engine.SandboxDetail, networks map[string]berth.Network) sandboxJSON {
	j := sandboxJSON{
		ID: d.ID, Name: d.Name, Created: d.Created, State: stateJSON{state(d)}, Path: d.Path, Owned: d.Owned, Labels: notNil(d.Labels),
		NetworkSettings: settingsAsJSON(d.Endpoints, networks),
	}
	j.NetworkSettings.SandboxKey = d.Path
	return j
}

// settingsAsJSON shows how something is connected. networks are those it is
// on, by id.
func settingsAsJSON(endpoints []engine.EndpointDetail, networks map[string]berth.Network) settingsJSON {
	j := settingsJSON{Ports: map[string][]bindingJSON{}, Networks: map[string]attachedJSON{}}
	for _, e := range endpoints {
		a := attachedJSON{NetworkID: e.Network, EndpointID: e.ID, Interface: e.Interface, MacAddress: e.MAC.String(), Aliases: e.Aliases, GwPriority: e.GwPriority, ratesJSON: ratesAsJSON(e.Rates), Labels: e.Labels}
		for _, p := range e.Addrs {
			gw := ""
			if g, ok := networks[e.Network].Gateway(p.Addr()); ok {
				gw = g.String()
			}
			if p.Addr().Is4() {
				a.IPAddress, a.IPPrefixLen, a.Gateway = p.Addr().String(), p.Bits(), gw
			} else {
				a.GlobalIPv6Address, a.GlobalIPv6PrefixLen, a.IPv6Gateway = p.Addr().String(), p.Bits(), gw
			}
		}
		name := e.NetworkName
		if _, twice := j.Networks[name]; twice {
			name += "/" + e.Interface
		}
		j.Networks[name] = a
		for _, p := range e.Ports {
			k := fmt.Sprintf("%d/%s", p.To.Port(), p.Protocol)
			j.Ports[k] = append(j.Ports[k], bindingJSON{p.HostIP.String(), fmt.Sprint(p.HostPort)})
		}
	}
	return j
}

func state(d engine.SandboxDetail) string {
	if d.Alive {
		return "running"
	}
	return "dead"
}

// portLine is a port as Docker writes it: 80/tcp -> 0.0.0.0:8888.
func portLine(p berth.Port) string {
	return fmt.Sprintf("%d/%s -> %s", p.To.Port(), p.Protocol, netip.AddrPortFrom(p.HostIP, p.HostPort))
}
