package demo

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"berth/internal/plan"
)

// veth is demo 1.
func (s *stage) veth() error {
	if err := s.must("sandbox create ns1", "network create --driver link --subnet 10.0.0.0/24 --gateway 10.0.0.2 link1"); err != nil {
		return err
	}
	s.show("ns1", "ping 10.0.0.2")
	s.misses("the host is not reachable yet", ping("ns1", "10.0.0.2"))
	if err := s.must("network connect --ip 10.0.0.1 link1 ns1"); err != nil {
		return err
	}
	s.show("ns1", "ping 10.0.0.2")
	s.reaches("the host is reachable", ping("ns1", "10.0.0.2"))
	s.show("", "ping 10.0.0.1")
	s.reaches("and ns1 from the host", ping("", "10.0.0.1"))
	if err := s.connected("", "ns1", "10.0.0.1"); err != nil {
		return err
	}
	return s.strike("sandbox rm ns1", "network rm link1")
}

// secondVeth is demo 1.5.
func (s *stage) secondVeth() error {
	err := s.must("sandbox create ns1 ns3",
		"network create --driver link --subnet 10.0.0.0/24 --gateway 10.0.0.2 link1", "network connect --ip 10.0.0.1 link1 ns1",
		"network create --driver link --subnet 10.0.0.0/24 --gateway 10.0.0.4 link2", "network connect --ip 10.0.0.3 link2 ns3")
	if err != nil {
		return err
	}
	s.say("By hand the host's end is LOWERLAYERDOWN until the other end is up; here one command brings up both.")
	s.show("", "ip -br addr")
	ends, err := links("")
	up := 0
	for _, l := range ends {
		s.answer(l.String())
		if l.up {
			up++
		}
	}
	s.expect(err == nil && up == 2, "both ends on the host are up and have a carrier")
	s.show("ns1", "ping 10.0.0.2")
	s.reaches("ns1 reaches its end on the host", ping("ns1", "10.0.0.2"))
	s.show("ns3", "ping 10.0.0.4")
	s.reaches("ns3 reaches its own", ping("ns3", "10.0.0.4"))
	s.show("ns3", "ping 10.0.0.1")
	s.misses("ns1 is unreachable: two pairs on the host are not a network", ping("ns3", "10.0.0.1"))
	s.show("ns1", "ping 10.0.0.3")
	s.misses("ns3 is unreachable", ping("ns1", "10.0.0.3"))
	return s.strike("sandbox rm ns1 ns3", "network rm link1 link2")
}

// bridge is demo 2.
func (s *stage) bridge() error {
	err := s.must("sandbox create ns1 ns3", "network create --subnet 10.0.0.0/24 --gateway 10.0.0.10 bridge0",
		"network connect --ip 10.0.0.1 bridge0 ns1", "network connect --ip 10.0.0.3 bridge0 ns3")
	if err != nil {
		return err
	}
	s.show("", "ip route get 10.0.0.1")
	dev, src, err := route("10.0.0.1")
	if err != nil {
		return err
	}
	s.answer("10.0.0.1 dev " + dev + " src " + src)
	s.expect(dev == "bt-bridge0" && src == "10.0.0.10", "10.0.0.0/24 leads to the bridge, from 10.0.0.10")
	for _, from := range []string{"ns1", "ns3"} {
		s.show(from, "ping 10.0.0.10")
		s.reaches("the host's end of the bridge answers", ping(from, "10.0.0.10"))
	}
	s.show("ns1", "ping 10.0.0.3")
	s.reaches("neighbours reach each other", ping("ns1", "10.0.0.3"))
	if err := s.otherTool(); err != nil {
		return err
	}
	return s.strike("sandbox rm ns1 ns3", "network rm bridge0")
}

// otherTool is the scene of demo 2 in which another tool drops what is
// forwarded: the diagnosis and the cure.
func (s *stage) otherTool() error {
	server, err := web("ns1", "10.0.0.1:80")
	if err != nil {
		return err
	}
	defer server.Close()
	if err := s.must("publish ns1 8888:80"); err != nil {
		return err
	}
	out, in := ping("ns1", lanAddr), curl(lanName, hostAddr+":8888")
	s.show("ns1", "ping "+lanAddr)
	s.reaches("ns1 reaches the network outside", out)
	s.show(lanName, "curl "+hostAddr+":8888")
	s.reaches("the network outside reaches the published port", in)

	s.say("Now another tool sets a policy:")
	s.show("", "iptables -P FORWARD DROP")
	if err := s.host.nft.PlayForwardDrop(); err != nil {
		return err
	}
	s.show("", "iptables -L FORWARD")
	dropping := s.host.drops()
	if dropping {
		s.answer("Chain FORWARD (policy DROP)")
	}
	s.expect(dropping, "policy drop")
	if s.host.bridged() {
		s.show("ns1", "ping 10.0.0.3")
		s.misses("neighbours are cut off: with br_netfilter their packets pass the IP hooks", ping("ns1", "10.0.0.3"))
		s.show("ns3", "ping 10.0.0.1")
		s.misses("in both directions", ping("ns3", "10.0.0.1"))
	} else {
		s.say("br_netfilter is off here: what stays on the bridge does not pass the IP hooks.")
		s.show("ns1", "ping 10.0.0.3")
		s.reaches("neighbours still reach each other", ping("ns1", "10.0.0.3"))
	}
	s.show("ns1", "ping "+lanAddr)
	s.misses("the way out is closed", out)
	s.show(lanName, "curl "+hostAddr+":8888")
	s.misses("the published port is closed", in)
	if err := s.cure(); err != nil {
		return err
	}
	s.show("ns1", "ping "+lanAddr)
	s.reaches("the way out is open again", out)
	s.show(lanName, "curl "+hostAddr+":8888")
	s.reaches("the published port is open again", in)
	if err := s.connected("ns1", "ns3", "10.0.0.3"); err != nil {
		return err
	}
	return s.host.nft.PlayForwardGone()
}

// cure lets check say what is in the way, and does what it says.
func (s *stage) cure() error {
	out, err := s.berth("check")
	if err != nil {
		return err
	}
	s.expect(strings.Contains(out, "ip filter FORWARD policy drop"), "check names what is in the way")
	const cure = "iptables -I FORWARD -i bt-bridge0 -j ACCEPT && iptables -I FORWARD -o bt-bridge0 -j ACCEPT"
	s.expect(strings.Contains(out, cure), "and the cure")
	s.show("", cure)
	if err := s.host.nft.PlayForwardAccept("bt-bridge0"); err != nil {
		return err
	}
	if out, err = s.berth("check"); err != nil {
		return err
	}
	s.expect(!strings.Contains(out, "FORWARD"), "nothing is in the way any more")
	return nil
}

// isolation is demo 3.
func (s *stage) isolation() error {
	if err := s.must("network create dummy1 dummy2", "network ls"); err != nil {
		return err
	}
	s.bridges()
	if err := s.must("sandbox create dummy1 dummy2", "network connect dummy1 dummy1", "network connect dummy2 dummy2"); err != nil {
		return err
	}
	if err := s.border(); err != nil {
		return err
	}
	return s.strike("sandbox rm dummy1 dummy2", "network rm dummy1 dummy2")
}

// bridges shows that there are two.
func (s *stage) bridges() {
	s.show("", "ip -br addr")
	all, err := links("")
	n := 0
	for _, l := range all {
		s.answer(l.String())
		if l.bridge && len(l.addrs) == 1 {
			n++
		}
	}
	s.expect(err == nil && n == 2, "two networks are two bridges")
}

// border proves that dummy1 and dummy2, which are there, do not reach each
// other, and that their networks count it.
func (s *stage) border() (err error) {
	addrs := map[string]string{}
	for _, name := range []string{"dummy1", "dummy2"} {
		if addrs[name], err = s.address(name); err != nil {
			return err
		}
		s.reaches(name+" is at "+addrs[name]+" and answers the host", ping("", addrs[name]))
	}
	before, err := s.dropped()
	if err != nil {
		return err
	}
	s.show("dummy1", "ping "+addrs["dummy2"])
	s.misses("dummy2 is unreachable", ping("dummy1", addrs["dummy2"]))
	s.show("dummy2", "ping "+addrs["dummy1"])
	s.misses("dummy1 is unreachable", ping("dummy2", addrs["dummy1"]))
	after, err := s.dropped()
	if err != nil {
		return err
	}
	for _, name := range []string{"dummy1", "dummy2"} {
		n := after[name] - before[name]
		s.expect(n >= 2, fmt.Sprintf("the border of %s has counted %d dropped packets more: one out, one in", name, n))
	}
	return nil
}

// address asks the kernel for the address inside a sandbox.
func (s *stage) address(sandbox string) (string, error) {
	s.show(sandbox, "ip -br addr")
	all, err := links(sandbox)
	if err != nil {
		return "", err
	}
	for _, l := range all {
		s.answer(l.String())
		if len(l.addrs) == 1 {
			p, err := netip.ParsePrefix(l.addrs[0])
			return p.Addr().String(), err
		}
	}
	return "", fmt.Errorf("%s has no address", sandbox)
}

// dropped shows and sums what was dropped at the borders of the two networks.
func (s *stage) dropped() (map[string]uint64, error) {
	out, err := s.berth("network", "inspect", "-f", "{{.Name}} {{json .Refused}}", "dummy1", "dummy2")
	if err != nil {
		return nil, err
	}
	sums := map[string]uint64{}
	for line := range strings.Lines(out) {
		name, list, _ := strings.Cut(line, " ")
		var refused []struct{ Packets uint64 }
		if err := json.Unmarshal([]byte(list), &refused); err != nil {
			return nil, fmt.Errorf("read what was refused: %w", err)
		}
		for _, r := range refused {
			sums[name] += r.Packets
		}
	}
	return sums, nil
}

// ports is demo 4.
func (s *stage) ports() error {
	if err := s.must("network create bridge", "sandbox create nginx", "network connect bridge nginx"); err != nil {
		return err
	}
	server, err := web("nginx", "0.0.0.0:80")
	if err != nil {
		return err
	}
	defer server.Close()
	s.say("Published from the start:")
	if err := s.must("publish nginx 8888:80"); err != nil {
		return err
	}
	if err := s.published(); err != nil {
		return err
	}

	s.say("Not published:")
	if err := s.must("unpublish nginx 8888"); err != nil {
		return err
	}
	addr, err := s.berth("sandbox", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "nginx")
	if err != nil {
		return err
	}
	s.show("", "curl "+addr+":80")
	s.reaches("the page, at the sandbox's own address", curl("", addr+":80"))
	s.unpublished()

	s.say("Published afterwards, while it runs. Docker has no command for this.")
	if err := s.must("publish nginx 8888:80"); err != nil {
		return err
	}
	if err := s.published(); err != nil {
		return err
	}
	s.expect(server.served.Load() == 5, "all 5 pages are from one server that was never restarted")
	if err := s.must("check"); err != nil {
		return err
	}
	s.expect(true, "the kernel is what the store wants")
	return s.strike("sandbox rm nginx", "network rm bridge")
}

// unpublished proves that nothing answers at the port 8888.
func (s *stage) unpublished() {
	s.show("", "curl localhost:8888")
	s.refused("nothing at the host's port", curl("", "127.0.0.1:8888"))
	s.show(lanName, "curl "+hostAddr+":8888")
	s.refused("nor from outside", curl(lanName, hostAddr+":8888"))
}

// published proves that the port 8888 leads to the server, and how.
func (s *stage) published() error {
	s.show("", "curl localhost:8888")
	s.reaches("the page", curl("", "127.0.0.1:8888"))
	s.show(lanName, "curl "+hostAddr+":8888")
	client, err := fetch(lanName, hostAddr+":8888", enough)
	s.expect(err == nil, "the page, from outside"+because(err))
	s.expect(client == lanAddr, "the server sees the address of its client, "+lanAddr)
	s.show("", "nft list map inet berth publish_any4")
	e, err := s.host.element("publish_any4", "tcp . 8888")
	if err != nil {
		return err
	}
	s.answer(e)
	s.expect(strings.HasSuffix(e, ". 80"), "the port is one element of a map in the kernel")
	s.show("", "ss -ltn 'sport = 8888'")
	busy, err := s.host.listens(8888)
	if err != nil {
		return err
	}
	s.expect(!busy, "no process listens there: nobody copies bytes")
	return nil
}

// connected shows a connection to a sandbox that talks both ways.
func (s *stage) connected(from, to, addr string) error {
	s.show(to, "nc -l 8080")
	l, err := echo(to, addr+":8080")
	if err != nil {
		return err
	}
	defer l.Close()
	s.show(from, "nc "+addr+" 8080")
	s.reaches("connected, in both directions", talk(from, addr+":8080"))
	return nil
}

// strike takes down what an act has made.
func (s *stage) strike(lines ...string) error {
	s.say("And everything is given back:")
	if err := s.must(lines...); err != nil {
		return err
	}
	left, err := links("")
	if err != nil {
		return err
	}
	table, err := s.host.nft.Table()
	if err != nil {
		return err
	}
	s.expect(len(left) == 0 && !table.Present, "no link and no rule is left")
	forwarding, err := s.host.kernel.Sysctl(plan.Host, forwardingPath)
	if err != nil {
		return err
	}
	s.expect(forwarding == s.host.forwarding, "forwarding is as it was")
	return nil
}
