package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"time"
)

// ocspClient speaks HTTP with one responder and with nobody else: it follows no redirect and uses no proxy. Each request has a
// connection of its own, so that every one shows whether the responder takes connections, and none is repeated behind our back.
type ocspClient struct {
	base    *url.URL
	timeout time.Duration // of one request, from the name's resolution to the last octet
	http    *http.Client
}

// maxAnswer bounds what is read of an answer, in octets.
const maxAnswer = 1 << 20

// httpReply is what came back, whatever it is.
type httpReply struct {
	status    int
	proto     string
	header    http.Header
	body      []byte
	connected time.Duration // from the start until the connection stood
	took      time.Duration // until the last octet
	received  time.Time
}

func newOCSPClient(address string, timeout time.Duration) (*ocspClient, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is no address of a responder; it looks like http://ocsp.example.org", address)
	}
	return &ocspClient{base: u, timeout: timeout, http: &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 1 << 16},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (c *ocspClient) do(ctx context.Context, method string, u *url.URL, header http.Header, body io.Reader) (*httpReply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	start := time.Now()
	r := &httpReply{}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { r.connected = time.Since(start) }})
	req, err := http.NewRequestWithContext(ctx, method, c.base.String(), body)
	if err != nil {
		return nil, err
	}
	req.URL = u
	for name, v := range header {
		req.Header[name] = v
	}
	resp, err := c.http.Do(req)
	if err == nil {
		defer resp.Body.Close()
		r.status, r.proto, r.header = resp.StatusCode, resp.Proto, resp.Header
		r.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	}
	r.received = time.Now()
	r.took = r.received.Sub(start)
	var wrapped *url.Error // names the whole URL, which is long
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("no answer within %s", c.timeout)
	case err != nil:
		return nil, err
	case len(r.body) > maxAnswer:
		return nil, fmt.Errorf("the answer is larger than %d octets", maxAnswer)
	}
	return r, nil
}

// post sends a request as RFC 6960 appendix A.1 says.
func (c *ocspClient) post(ctx context.Context, request []byte) (*httpReply, error) {
	return c.do(ctx, http.MethodPost, c.base, http.Header{"Content-Type": {"application/ocsp-request"}}, bytes.NewReader(request))
}

// http10 sends a GET as an HTTP/1.0 client does, which net/http does not.
func (c *ocspClient) http10(ctx context.Context, path string) (*httpReply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	port := c.base.Port()
	if port == "" {
		port = "80"
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(c.base.Hostname(), port))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", path, c.base.Host); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return &httpReply{status: resp.StatusCode, proto: resp.Proto, header: resp.Header, body: body, received: time.Now()}, err
}
