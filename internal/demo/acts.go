package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

var noTimeout = context.Background()

// strike takes the scenery of an act down.
func (s *stage) strike() error {
	s.say("And everything is given back.")
	out, err := s.quiet("network", "ls", "-q")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if ids := strings.Fields(out); len(ids) > 0 {
		if out, err := s.quiet(append([]string{"network", "rm", "--force"}, ids...)...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if out, err = s.quiet("sandbox", "ls", "--format", "{{.Name}}"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if names := strings.Fields(out); len(names) > 0 {
		if out, err := s.quiet(append([]string{"sandbox", "rm"}, names...)...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	left := ""
	links, err := net.Interfaces()
	for _, l := range links {
		if strings.HasPrefix(l.Name, "bt") {
			left += " " + l.Name
		}
	}
	table, terr := s.host.nft.Table()
	s.expect(err == nil && terr == nil && left == "" && !table.Present, "no link and no rule is left")
	return nil
}

// veth is demo 1.
func (s *stage) veth() error {
	if err := s.must(words("sandbox create ns1"), words("network create --driver link --subnet 10.0.0.0/24 --gateway 10.0.0.2 link1")); err != nil {
		return err
	}
	s.show("ns1", "ping 10.0.0.2")
	s.expect(!ping("ns1", "10.0.0.2"), "the host is not reachable yet")
	if err := s.must(words("network connect --ip 10.0.0.1 link1 ns1")); err != nil {
		return err
	}
	s.show("ns1", "ping 10.0.0.2")
	s.expect(ping("ns1", "10.0.0.2"), "the host is reachable")
	s.show("ns1", "nc -l 8080")
	l, err := listen("ns1", "10.0.0.1:8080")
	if err != nil {
		return err
	}
	defer l.Close()
	s.show("", "nc 10.0.0.1 8080")
	s.expect(talk("", "10.0.0.1:8080"), "connected, in both directions")
	return nil
}

// secondVeth is demo 1.5.
func (s *stage) secondVeth() error {
	err := s.must(
		words("sandbox create ns1 ns3"),
		words("network create --driver link --subnet 10.0.0.0/24 --gateway 10.0.0.2 link1"), words("network connect --ip 10.0.0.1 link1 ns1"),
		words("network create --driver link --subnet 10.0.0.0/24 --gateway 10.0.0.4 link2"), words("network connect --ip 10.0.0.3 link2 ns3"))
	if err != nil {
		return err
	}
	s.say("By hand the host's end says LOWERLAYERDOWN until the other end is up; here one command brings up both.")
	s.show("", "ip link show")
	up := 0
	links, err := net.Interfaces()
	for _, l := range links {
		if strings.HasPrefix(l.Name, "bt") && l.Flags&net.FlagUp != 0 && l.Flags&net.FlagRunning != 0 {
			up++
		}
	}
	s.expect(err == nil && up == 2, "both host ends are up and have a carrier")
	s.expect(ping("", "10.0.0.1") && ping("", "10.0.0.3"), "the host reaches both, in one prefix on two wires")
	s.show("ns3", "ping 10.0.0.1")
	s.expect(!ping("ns3", "10.0.0.1"), "unreachable: two pairs on the host are not a network")
	s.show("ns1", "ping 10.0.0.3")
	s.expect(!ping("ns1", "10.0.0.3"), "unreachable, the other way round")
	return nil
}

// bridge is demo 2.
func (s *stage) bridge() error {
	err := s.must(words("sandbox create ns1 ns3"), words("network create --subnet 10.0.0.0/24 --gateway 10.0.0.10 bridge0"),
		words("network connect --ip 10.0.0.1 bridge0 ns1"), words("network connect --ip 10.0.0.3 bridge0 ns3"))
	if err != nil {
		return err
	}
	s.show("", "ip route")
	routes, err := s.host.kernel.Routes()
	has := false
	for _, r := range routes {
		has = has || r == netip.MustParsePrefix("10.0.0.0/24")
	}
	s.expect(err == nil && has, "10.0.0.0/24 leads to the bridge")
	s.show("ns1, ns3", "ping 10.0.0.10")
	s.expect(ping("ns1", "10.0.0.10") && ping("ns3", "10.0.0.10"), "both reach the host's end of the bridge")
	s.show("ns1", "ping 10.0.0.3")
	s.expect(ping("ns1", "10.0.0.3") && ping("ns3", "10.0.0.1"), "neighbours reach each other")
	return s.forwardDrop()
}

// forwardDrop is the scene where another tool drops what is forwarded.
func (s *stage) forwardDrop() error {
	page, err := web("ns1", "10.0.0.1:80")
	if err != nil {
		return err
	}
	defer page.Close()
	if err := s.must(words("publish ns1 8888:80")); err != nil {
		return err
	}
	bridged := s.host.bridged()
	s.expect(ping("ns1", lanAddr), "ns1 reaches the network outside")
	s.expect(serves(lanName, hostAddr+":8888"), "the network outside reaches the published port")

	s.say("Now another tool sets a policy:")
	s.show("", "iptables -P FORWARD DROP")
	if err := s.host.nft.PlayForwardDrop(); err != nil {
		return err
	}
	s.expect(!ping("ns1", lanAddr), "the way out is closed")
	s.expect(!serves(lanName, hostAddr+":8888"), "the published port does not answer outside")
	if bridged {
		s.expect(!ping("ns1", "10.0.0.3"), "neighbours are cut off: br_netfilter lets bridged packets pass the IP hooks")
	} else {
		s.say("br_netfilter is off here: neighbours do not pass the IP hooks, and still reach each other.")
		s.expect(ping("ns1", "10.0.0.3"), "neighbours reach each other")
	}
	out, err := s.berth("check")
	s.expect(err == nil && strings.Contains(out, "ip filter FORWARD policy drop"), "check names what stands in the way")
	cure := "iptables -I FORWARD -i bt-bridge0 -j ACCEPT && iptables -I FORWARD -o bt-bridge0 -j ACCEPT"
	s.expect(strings.Contains(out, cure), "and the cure")
	s.show("", cure)
	if err := s.host.nft.PlayForwardAccept("bt-bridge0"); err != nil {
		return err
	}
	s.expect(ping("ns1", lanAddr) && serves(lanName, hostAddr+":8888"), "the way out and the published port are open again")
	s.show("ns3", "nc -l 8080")
	l, err := listen("ns3", "10.0.0.3:8080")
	if err != nil {
		return err
	}
	defer l.Close()
	s.show("ns1", "nc 10.0.0.3 8080")
	s.expect(talk("ns1", "10.0.0.3:8080"), "neighbours are connected")
	return s.host.nft.PlayForwardGone()
}

// isolation is demo 3.
func (s *stage) isolation() error {
	err := s.must(words("network create dummy1 dummy2"), words("network ls"), words("sandbox create dummy1 dummy2"),
		words("network connect dummy1 dummy1"), words("network connect dummy2 dummy2"))
	if err != nil {
		return err
	}
	a, err := s.address("dummy1")
	if err != nil {
		return err
	}
	b, err := s.address("dummy2")
	if err != nil {
		return err
	}
	s.expect(a != "" && b != "" && a != b, "two sandboxes on two networks: %s and %s", a, b)
	before1, before2 := s.refused("dummy1"), s.refused("dummy2")
	s.show("dummy1", "ping "+b)
	s.expect(!ping("dummy1", b), "unreachable")
	s.show("dummy2", "ping "+a)
	s.expect(!ping("dummy2", a), "unreachable")
	if err := s.must([]string{"network", "inspect", "-f", "{{range .Refused}}{{.Reason}}: {{.Packets}} packets; {{end}}", "dummy1", "dummy2"}); err != nil {
		return err
	}
	s.expect(s.refused("dummy1") > before1 && s.refused("dummy2") > before2, "the dropped packets were counted at both borders")
	return nil
}

// ports is demo 4.
func (s *stage) ports() error {
	if err := s.must(words("network create bridge"), words("sandbox create nginx"), words("network connect bridge nginx")); err != nil {
		return err
	}
	server, err := web("nginx", "0.0.0.0:80")
	if err != nil {
		return err
	}
	defer server.Close()
	s.say("Published from the start:")
	if err := s.must(words("publish nginx 8888:80")); err != nil {
		return err
	}
	s.show("", "curl localhost:8888")
	s.expect(serves("", "127.0.0.1:8888"), "the page")
	s.expect(serves(lanName, hostAddr+":8888"), "and from outside")
	out, err := s.berth("port", "nginx")
	s.expect(err == nil && strings.Contains(out, "80/tcp -> 0.0.0.0:8888"), "the port is one element of a map in the kernel; no process copies bytes")

	s.say("Not published:")
	if err := s.must(words("unpublish nginx 8888")); err != nil {
		return err
	}
	a, err := s.berth("sandbox", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "nginx")
	if err != nil {
		return err
	}
	s.show("", "curl "+a+":80")
	s.expect(serves("", a+":80"), "the page, at the sandbox's own address")
	s.show("", "curl localhost:8888")
	s.expect(!serves("", "127.0.0.1:8888"), "refused")

	s.say("Published afterwards, while it runs: Docker has no command for this.")
	if err := s.must(words("publish nginx 8888:80")); err != nil {
		return err
	}
	s.show("", "curl localhost:8888")
	s.expect(serves("", "127.0.0.1:8888"), "the page, and the server was never restarted")
	return nil
}

// quiet runs berth without showing it.
func (s *stage) quiet(args ...string) (string, error) {
	shown := s.w
	s.w = discard{}
	defer func() { s.w = shown }()
	step, commands := s.o.step, s.o.commands
	s.o.step, s.o.commands = false, false
	defer func() { s.o.step, s.o.commands = step, commands }()
	return s.berth(args...)
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func (s *stage) address(sandbox string) (string, error) {
	return s.berth("sandbox", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", sandbox)
}

// refused sums what was dropped at a network's border.
func (s *stage) refused(network string) uint64 {
	out, err := s.quiet("network", "inspect", network)
	var all []struct {
		Refused []struct{ Packets uint64 }
	}
	if err != nil || json.Unmarshal([]byte(out), &all) != nil || len(all) == 0 {
		return 0
	}
	var sum uint64
	for _, r := range all[0].Refused {
		sum += r.Packets
	}
	return sum
}
